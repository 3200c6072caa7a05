// The player around a stage: timeline, buttons, keys, camera. One per <section class="replay"> of the page.
(function (RDP) {
  "use strict";
  const { clamp, element } = RDP;
  const ICONS = {
    play: "M7 4.5v15l12-7.5z", pause: "M6.5 5h4v14h-4zM13.5 5h4v14h-4z",
    full: "M4 9V4h5v2H6v3zM15 4h5v5h-2V6h-3zM4 15h2v3h3v2H4zM18 15h2v5h-5v-2h3z",
  };
  const SPEEDS = [0.1, 0.25, 0.5, 1, 2, 4];
  const ANGLES = { "3/4": [-0.75, 0.24], front: [0, 0.12], side: [-Math.PI / 2, 0.12], back: [Math.PI, 0.18], top: [-0.75, 1.4] };
  const KEYS = "space play · ← → 1 s · , . frame · [ ] speed · F follow · C side by side · V view · R reset · 1–9 recording";
  const icon = (name) => `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;

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
      this.ease = new RDP.Ease();
      this.orbit = new RDP.Orbit();
      this._view(0);
      if (wish.cam) {
        Object.assign(this.orbit, { az: (wish.cam[0] * Math.PI) / 180, el: (wish.cam[1] * Math.PI) / 180, dist: wish.cam[2] });
      }
      this._build();
      this.orbit.listen(this.frame, () => (this.dirty = true));
      this._keys();
    }

    _view(index) {
      this.view = index;
      const first = this.replays[this._shown()[0]], [turn, tilt] = Object.values(ANGLES)[index];
      this.held = this.replays.map((r) => r.sample(this.time)); // where a camera that does not follow looks
      this.orbit.look(first.heading() + turn, tilt);
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

    // --------------------------------------------------------------- drawing
    _stage() {
      this.stage = RDP.makeStage(this.frame, this.replays, this.wish.gl, RDP.themeOf(this.wish), this.note);
      this.resize();
    }

    resize() {
      if (this.stage && RDP.fit(this.stage, this.frame)) this.dirty = true;
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
        this.ease.keepUp(this.stage, seconds);
      }
      if (this.dirty) this.draw();
    }

    draw() {
      if (!this.stage) this._stage();
      const shown = this._shown(), strip = (this.frame.clientWidth + 2) / shown.length, width = strip - 2; // 2 px between
      const t = Math.min(this.time, this.duration);
      const panels = shown.map((index, i) => {
        const focus = this.replays[index].sample(t), held = this.follow ? focus : this.held[index];
        const { target, eye } = this.orbit.aim(held, width / this.frame.clientHeight);
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
    const wish = RDP.wishes(), players = [...document.querySelectorAll("section.replay")].map((s) => new Player(s, wish));
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
      const { t } = RDP.wishes();
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
