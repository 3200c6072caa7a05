// The player around a stage: timeline, buttons, keys, camera. One per <section class="replay"> of the page.
(function (RDP) {
  "use strict";
  const ICONS = {
    play: "M7 4.5v15l12-7.5z", pause: "M6.5 5h4v14h-4zM13.5 5h4v14h-4z",
    full: "M4 9V4h5v2H6v3zM15 4h5v5h-2V6h-3zM4 15h2v3h3v2H4zM18 15h2v5h-5v-2h3z",
  };
  const SPEEDS = [0.1, 0.25, 0.5, 1, 2, 4];
  const ANGLES = { "3/4": [-0.75, 0.24], front: [0, 0.12], side: [-Math.PI / 2, 0.12], back: [Math.PI, 0.18], top: [-0.75, 1.4] };
  const KEYS = "space play · ← → 1 s · , . frame · [ ] speed · F follow · C side by side · V view · R reset · 1–9 recording";
  const icon = (name) => `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;
  const clamp = (x, lo, hi) => Math.min(hi, Math.max(lo, x));

  function element(tag, className, parent, attributes = {}) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (parent) parent.appendChild(node);
    return node;
  }

  // What the address asks for: #t=3.2&cam=-40,12,3&show=2&side=1&gl=0
  function wishes() {
    const w = new URLSearchParams(location.hash.slice(1)), number = (k) => (w.has(k) ? parseFloat(w.get(k)) : null);
    return {
      t: number("t"), show: number("show"), side: w.get("side"), gl: w.get("gl") !== "0", theme: w.get("theme"),
      cam: w.has("cam") ? w.get("cam").split(",").map(parseFloat) : null,
    };
  }

  class Player {
    constructor(root, wish) {
      this.root = root;
      const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
      this.labels = data.panels.map((p) => p.label);
      this.replays = data.panels.map((p) => new RDP.Replay(p.replay));
      this.duration = Math.max(...this.replays.map((r) => r.duration));
      this.step = 1 / Math.max(...this.replays.map((r) => r.fps));
      this.time = wish.t === null ? 0 : clamp(wish.t, 0, this.duration);
      this.playing = wish.t === null && !matchMedia("(prefers-reduced-motion: reduce)").matches && this.duration > 0;
      this.speed = 1;
      this.follow = true;
      this.chosen = clamp((wish.show || 1) - 1, 0, this.replays.length - 1);
      this.side = this.replays.length > 1 && (wish.side === null ? data.side_by_side : wish.side !== "0");
      this.wish = wish;
      this.dirty = true;
      this.onScreen = false;
      this.drawn = [];
      this._view(0);
      if (wish.cam) [this.az, this.el, this.dist] = [(wish.cam[0] * Math.PI) / 180, (wish.cam[1] * Math.PI) / 180, wish.cam[2]];
      this._build();
      this._camera();
      this._keys();
    }

    _view(index) {
      this.view = index;
      const first = this.replays[this._shown()[0]], [turn, tilt] = Object.values(ANGLES)[index];
      this.held = this.replays.map((r) => r.sample(this.time)); // where a camera that does not follow looks
      [this.az, this.el] = [first.heading() + turn, tilt];
      this.dist = 3.5;
      this.shift = [0, 0, -0.08];
      this.dirty = true;
    }

    // ------------------------------------------------------------------ page
    _build() {
      this.frame = element("div", "stage", this.root, { tabindex: "0", role: "group", "aria-label": "replay" });
      this.tags = element("div", "tags", this.frame);
      this.caption = element("div", "caption", this.frame);
      this.note = element("div", "note", this.frame);
      const key = element("div", "key", this.frame);
      const named = new Map(this.replays.flatMap((r) => r.markers.map((m) => [m.name, m.color])));
      for (const [name, color] of named) element("span", "", key, { style: `--c:${color}` }).textContent = name;
      const bar = element("div", "bar", this.root);
      this.playButton = this._button(bar, "", "play or pause (space)", () => this.toggle());
      this.clock = element("span", "clock", bar);
      const line = element("div", "line", bar);
      const longest = this.replays.find((r) => r.duration === this.duration);
      this.segments = (longest.captions.length ? longest : this.replays.find((r) => r.captions.length) || longest).captions;
      const strip = element("div", "strip", line);
      for (const c of this.segments) {
        const piece = element("button", "segment", strip, { type: "button", title: c.text });
        piece.style.left = `${(100 * c.start) / this.duration}%`;
        piece.style.width = `${(100 * Math.max(0, c.end - c.start)) / this.duration}%`;
        piece.textContent = c.text;
        piece.onclick = () => this.seek(c.start);
      }
      this.range = element("input", "", line, {
        type: "range", min: 0, max: this.duration, step: "any", "aria-label": "time in seconds",
      });
      this.range.oninput = () => this.seek(parseFloat(this.range.value));
      const speed = element("select", "", bar, { title: "speed ([ and ])", "aria-label": "speed" });
      this.speedSelect = speed;
      for (const s of SPEEDS) element("option", "", speed, { value: s }).textContent = `${s}×`;
      speed.value = 1;
      speed.onchange = () => (this.speed = parseFloat(speed.value));
      this.viewSelect = element("select", "", bar, { title: "view (V)", "aria-label": "view" });
      Object.keys(ANGLES).forEach((name, i) => (element("option", "", this.viewSelect, { value: i }).textContent = name));
      this.viewSelect.onchange = () => this._view(parseInt(this.viewSelect.value, 10));
      this.followButton = this._button(bar, "follow", "camera follows the robot (F)", () => this.toggleFollow());
      if (this.replays.length > 1) {
        this.sideButton = this._button(bar, "side by side", "all recordings at once (C)", () => this.toggleSide());
      }
      this._button(bar, icon("full"), "full screen", () => this._fullscreen());
      const help = element("span", "help", bar, { title: KEYS, tabindex: "0", "aria-label": `keys: ${KEYS}` });
      help.textContent = "?";
      this._tags();
      this._buttons();
    }

    _button(parent, content, title, action) {
      const button = element("button", "", parent, { type: "button", title });
      button.innerHTML = content;
      button.onclick = action;
      return button;
    }

    _tags() {
      this.tags.textContent = "";
      const shown = this._shown();
      this.tags.classList.toggle("spread", this.side);
      this.tags.style.setProperty("--n", shown.length);
      (this.side ? shown : this.labels.map((_, i) => i)).forEach((i) => {
        if (!this.labels[i]) return;
        const tag = this._button(this.tags, "", this.replays.length > 1 ? `show only this (${i + 1})` : "", () => this.show(i));
        tag.textContent = this.labels[i];
        tag.classList.toggle("on", this.side || i === this.chosen);
        if (this.side) tag.style.left = `${(100 * shown.indexOf(i)) / shown.length}%`;
      });
    }

    _buttons() {
      this.playButton.innerHTML = icon(this.playing ? "pause" : "play");
      this.followButton.classList.toggle("on", this.follow);
      if (this.sideButton) this.sideButton.classList.toggle("on", this.side);
    }

    _shown() {
      return this.side ? this.replays.map((_, i) => i).slice(0, 4) : [this.chosen];
    }

    // --------------------------------------------------------------- actions
    toggle() {
      if (!this.playing && this.time >= this.duration) this.time = 0;
      this.playing = !this.playing && this.duration > 0;
      this.dirty = true;
      this._buttons();
    }

    seek(t) {
      this.time = clamp(t, 0, this.duration);
      this.playing = false;
      this.dirty = true;
      this._buttons();
    }

    show(index) {
      if (index < 0 || index >= this.replays.length) return;
      [this.chosen, this.side, this.dirty] = [index, false, true];
      this._tags();
      this._buttons();
    }

    toggleSide() {
      if (this.replays.length < 2) return;
      [this.side, this.dirty] = [!this.side, true];
      this._tags();
      this._buttons();
    }

    toggleFollow() {
      this.follow = !this.follow;
      this.held = this.replays.map((r) => r.sample(this.time));
      this.dirty = true;
      this._buttons();
    }

    _changeSpeed(by) {
      this.speed = SPEEDS[clamp(SPEEDS.indexOf(this.speed) + by, 0, SPEEDS.length - 1)];
      this.speedSelect.value = this.speed;
    }

    _fullscreen() {
      if (document.fullscreenElement) document.exitFullscreen();
      else if (this.root.requestFullscreen) this.root.requestFullscreen();
    }

    _keys() {
      const nextView = () => {
        this._view((this.view + 1) % Object.keys(ANGLES).length);
        this.viewSelect.value = this.view;
      };
      const actions = {
        " ": () => this.toggle(), ArrowLeft: () => this.seek(this.time - 1), ArrowRight: () => this.seek(this.time + 1),
        ",": () => this.seek(this.time - this.step), ".": () => this.seek(this.time + this.step),
        Home: () => this.seek(0), End: () => this.seek(this.duration), f: () => this.toggleFollow(),
        c: () => this.toggleSide(), r: () => this._view(this.view), v: nextView,
        "[": () => this._changeSpeed(-1), "]": () => this._changeSpeed(1),
      };
      this.key = (event) => {
        const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        if (action) action();
        else if (/^[1-9]$/.test(event.key)) this.show(parseInt(event.key, 10) - 1);
        else return;
        event.preventDefault();
      };
    }

    // Drag turns, right drag or shift moves, wheel or pinch zooms.
    _camera() {
      const fingers = new Map(), area = this.frame;
      area.addEventListener("contextmenu", (e) => e.preventDefault());
      area.addEventListener("pointerdown", (e) => {
        if (e.target.closest("button")) return;
        fingers.set(e.pointerId, [e.clientX, e.clientY]);
        area.setPointerCapture(e.pointerId);
      });
      for (const end of ["pointerup", "pointercancel"]) area.addEventListener(end, (e) => fingers.delete(e.pointerId));
      area.addEventListener("pointermove", (e) => {
        const was = fingers.get(e.pointerId);
        if (!was) return;
        const now = [e.clientX, e.clientY], dx = now[0] - was[0], dy = now[1] - was[1];
        if (fingers.size > 1) {
          const [other] = [...fingers].filter(([id]) => id !== e.pointerId).map(([, p]) => p);
          this._zoom(Math.hypot(was[0] - other[0], was[1] - other[1]) / Math.hypot(now[0] - other[0], now[1] - other[1]));
        } else if (e.buttons & 2 || e.shiftKey) this._pan(dx, dy);
        else {
          this.az -= dx * 0.007;
          this.el = clamp(this.el + dy * 0.006, -0.2, 1.5);
        }
        fingers.set(e.pointerId, now);
        this.dirty = true;
      });
      area.addEventListener("wheel", (e) => {
        if (!area.contains(document.activeElement) && !e.ctrlKey) return; // a page scrolls until the stage is clicked
        e.preventDefault();
        this._zoom(Math.exp(clamp(e.deltaY, -120, 120) * 0.0016));
      }, { passive: false });
    }

    _zoom(by) {
      this.dist = clamp(this.dist * by, 0.6, 25);
      this.dirty = true;
    }

    _pan(dx, dy) {
      const s = this.dist * 0.0011, c = Math.cos(this.az), n = Math.sin(this.az);
      this.shift = [this.shift[0] + dx * s * n, this.shift[1] - dx * s * c, this.shift[2] + dy * s];
    }

    // --------------------------------------------------------------- drawing
    _stage() {
      const theme = this.wish.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
      try {
        if (!this.wish.gl) throw new Error("asked for none");
        this.stage = new RDP.StageGL(this.replays, theme);
      } catch (error) {
        this.stage = new RDP.Stage2D(this.replays, theme);
        this.note.textContent = "no WebGL here: simple drawing";
      }
      this.frame.prepend(this.stage.canvas);
      this.resize();
    }

    resize() {
      const width = Math.max(1, this.frame.clientWidth), height = Math.max(1, this.frame.clientHeight);
      if (!this.stage || (width === this.stage.width && height === this.stage.height)) return;
      this.stage.resize(width, height);
      this.dirty = true;
    }

    setTheme(name) {
      if (!this.stage || this.wish.theme) return;
      this.stage.setTheme(name);
      this.dirty = true;
    }

    tick(seconds) {
      if (!this.onScreen) return;
      if (this.playing) {
        this.time += seconds * this.speed;
        if (this.time > this.duration) this.time = this.time > this.duration + 0.8 ? 0 : this.time; // a breath, then again
        this.dirty = true;
        this._keepUp(seconds);
      }
      if (this.dirty) this.draw();
    }

    // Asks for a cheaper picture where frames take longer than 55 ms.
    _keepUp(seconds) {
      this.drawn.push(seconds);
      const total = this.drawn.reduce((a, b) => a + b), count = this.drawn.length;
      if (count < 4 || total < 0.8) return;
      this.drawn = [];
      if (total / count > 0.055) this.stage.lighten();
    }

    draw() {
      if (!this.stage) this._stage();
      const shown = this._shown(), strip = (this.frame.clientWidth + 2) / shown.length, width = strip - 2; // 2 px between
      const t = Math.min(this.time, this.duration);
      // A narrow strip steps back so that the robot still fits in its width.
      const dist = this.dist * Math.max(1, 0.8 / (width / this.frame.clientHeight));
      const reach = dist * Math.cos(this.el);
      const panels = shown.map((index, i) => {
        const focus = this.replays[index].sample(t), held = this.follow ? focus : this.held[index];
        const target = held.map((v, k) => v + this.shift[k]);
        const eye = [target[0] + reach * Math.cos(this.az), target[1] + reach * Math.sin(this.az), target[2] + dist * Math.sin(this.el)];
        return { index, x: i * strip, width, focus, target, eye };
      });
      this.stage.draw(panels, this.playing);
      this.range.value = t;
      this.range.style.setProperty("--done", `${(100 * t) / (this.duration || 1)}%`);
      this.clock.textContent = `${t.toFixed(1)} / ${this.duration.toFixed(1)} s`;
      const text = this.replays[shown[0]].captionAt(t);
      this.caption.textContent = text;
      this.caption.hidden = !text;
      this.dirty = false;
      this.root.setAttribute("data-ready", this.stage instanceof RDP.StageGL ? "webgl" : "2d");
    }
  }

  RDP.start = function () {
    const wish = wishes(), players = [...document.querySelectorAll("section.replay")].map((s) => new Player(s, wish));
    const byNode = new Map(players.map((p) => [p.root, p]));
    const near = (p) => {
      const box = p.root.getBoundingClientRect();
      return box.bottom > -100 && box.top < innerHeight + 100;
    };
    for (const p of players) if ((p.onScreen = near(p))) p.draw();
    const sizes = new ResizeObserver((seen) => seen.forEach((e) => byNode.get(e.target.parentNode).resize()));
    players.forEach((p) => sizes.observe(p.frame));
    const places = new IntersectionObserver((seen) => seen.forEach((e) => {
      const p = byNode.get(e.target);
      p.onScreen = e.isIntersecting;
      p.dirty = p.dirty || !p.stage;
    }), { rootMargin: "100px" });
    players.forEach((p) => places.observe(p.root));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (e) => {
      players.forEach((p) => p.setTheme(e.matches ? "dark" : "light"));
    });
    addEventListener("keydown", (event) => {
      if (event.target.closest("input[type=text], textarea, select")) return;
      const inside = event.target.closest("section.replay"), first = players.find((p) => p.onScreen);
      const player = inside ? byNode.get(inside) : first;
      if (event.target.closest("button, .segment") && event.key === " ") return;
      if (player) player.key(event);
    });
    addEventListener("hashchange", () => {
      const { t } = wishes();
      if (t !== null) players.forEach((p) => p.seek(t));
    });
    let last = performance.now();
    const loop = (now) => {
      const seconds = Math.min(1, (now - last) / 1000);
      last = now;
      players.forEach((p) => p.tick(seconds));
      requestAnimationFrame(loop);
    };
    requestAnimationFrame(loop);
    document.documentElement.setAttribute("data-ready", String(players.length));
  };
})(window.RDP = window.RDP || {});
