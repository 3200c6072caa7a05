// The camera around a robot and the canvas that it fills; shared by recorded replays and the live page.
(function (RDP) {
  "use strict";
  const clamp = (x, lo, hi) => Math.min(hi, Math.max(lo, x));

  function element(tag, className, parent, attributes = {}) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (parent) parent.appendChild(node);
    return node;
  }

  // Drag turns, right drag or shift moves, wheel or pinch zooms.
  class Orbit {
    constructor() {
      this.look(0, 0.24);
    }

    // From azimuth and elevation [rad], at the usual distance.
    look(az, el) {
      Object.assign(this, { az, el, dist: 3.5, shift: [0, 0, -0.08] });
    }

    listen(area, changed) {
      const fingers = new Map();
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
        changed();
      });
      area.addEventListener("wheel", (e) => {
        if (!area.contains(document.activeElement) && !e.ctrlKey) return; // a page scrolls until the stage is clicked
        e.preventDefault();
        this._zoom(Math.exp(clamp(e.deltaY, -120, 120) * 0.0016));
        changed();
      }, { passive: false });
    }

    _zoom(by) {
      this.dist = clamp(this.dist * by, 0.6, 25);
    }

    _pan(dx, dy) {
      const s = this.dist * 0.0011, c = Math.cos(this.az), n = Math.sin(this.az);
      this.shift = [this.shift[0] + dx * s * n, this.shift[1] - dx * s * c, this.shift[2] + dy * s];
    }

    // Target and eye for a robot at `place`, in a picture `aspect` times as wide as high; `turn` [rad] adds to the azimuth.
    aim(place, aspect, turn = 0) {
      const target = place.map((v, k) => v + this.shift[k]), az = this.az + turn;
      // A narrow strip steps back so that the robot still fits in its width.
      const dist = this.dist * Math.max(1, 0.8 / aspect), reach = dist * Math.cos(this.el);
      const eye = [target[0] + reach * Math.cos(az), target[1] + reach * Math.sin(az), target[2] + dist * Math.sin(this.el)];
      return { target, eye };
    }
  }

  // A stage inside `frame`: WebGL if it is wanted and there is one; `note` says so if not.
  function makeStage(frame, replays, wantsGL, themeName, note) {
    let stage;
    try {
      if (!wantsGL) throw new Error("asked for none");
      stage = new RDP.StageGL(replays, themeName);
    } catch (error) {
      stage = new RDP.Stage2D(replays, themeName);
      note.textContent = "no WebGL here: simple drawing";
    }
    frame.prepend(stage.canvas);
    return stage;
  }

  // Whether the stage had to be fitted to its frame's size.
  function fit(stage, frame) {
    const width = Math.max(1, frame.clientWidth), height = Math.max(1, frame.clientHeight);
    if (width === stage.width && height === stage.height) return false;
    stage.resize(width, height);
    return true;
  }

  // Asks for a cheaper picture where frames take longer than 55 ms.
  class Ease {
    constructor() {
      this.drawn = [];
    }

    keepUp(stage, seconds) {
      this.drawn.push(seconds);
      const total = this.drawn.reduce((a, b) => a + b), count = this.drawn.length;
      if (count < 4 || total < 0.8) return;
      this.drawn = [];
      if (total / count > 0.055) stage.lighten();
    }
  }

  // What the address asks for: #t=3.2&cam=-40,12,3&show=2&side=1&gl=0
  function wishes() {
    const w = new URLSearchParams(location.hash.slice(1)), number = (k) => (w.has(k) ? parseFloat(w.get(k)) : null);
    return {
      t: number("t"), show: number("show"), side: w.get("side"), gl: w.get("gl") !== "0", theme: w.get("theme"),
      cam: w.has("cam") ? w.get("cam").split(",").map(parseFloat) : null,
    };
  }

  const themeOf = (wish) => wish.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

  Object.assign(RDP, { clamp, element, Orbit, makeStage, fit, Ease, wishes, themeOf });
})(window.RDP = window.RDP || {});
