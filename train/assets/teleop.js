// The live page: shows the robot, sends what is pressed. What a key or a stick means is decided by the server.
(function (RDP) {
  "use strict";
  const BACK = [Math.PI, 0.42]; // the camera behind the robot, a little above: azimuth from its heading, elevation [rad]

  // Keys held down and the first gamepad, as the server wants them.
  class Controls {
    constructor(held) {
      this.held = new Set(held);
      this.keys = new Set();
      addEventListener("keyup", (e) => this.keys.delete(e.code));
      addEventListener("blur", () => this.keys.clear());
    }

    // Whether `event` is about a key that can be held.
    press(event) {
      if (this.held.has(event.code)) this.keys.add(event.code);
      return this.held.has(event.code);
    }

    pad() {
      return [...(navigator.getGamepads ? navigator.getGamepads() : [])].find((p) => p && p.mapping === "standard");
    }

    state() {
      const pad = this.pad(), round = (v) => Math.round(v * 1000) / 1000;
      const found = { keys: [...this.keys] };
      if (pad) {
        found.axes = pad.axes.slice(0, 4).map(round);
        found.buttons = pad.buttons.slice(0, 17).map((b) => round(b.value));
      }
      return found;
    }
  }

  class Page {
    constructor(root) {
      const setup = JSON.parse(root.querySelector("script[type='application/json']").textContent);
      const find = (selector) => document.querySelector(selector);
      this.root = root;
      this.setup = setup;
      this.frame = find(".stage");
      this.banner = find(".banner");
      this.counts = find("#counts");
      this.clock = find(".clock");
      this.complaint = find("#complaint");
      this.buttons = [...document.querySelectorAll("[data-do]")];
      this.live = new RDP.Live(setup.scene);
      const wish = RDP.wishes(), key = find(".key");
      for (const m of this.live.markers) RDP.element("span", "", key, { style: `--c:${m.color}` }).textContent = m.name;
      this.stage = RDP.makeStage(this.frame, [this.live], wish.gl, RDP.themeOf(wish), find(".note"));
      this.orbit = new RDP.Orbit();
      this.orbit.look(...BACK);
      this.orbit.dist = 2.8;
      this.orbit.listen(this.frame, () => (this.dirty = true));
      this.dirty = true;
      this.ease = new RDP.Ease();
      this.controls = new Controls(setup.held);
      this.pressed = new Set(); // buttons of the gamepad that were down at the last look
      this.sent = "";
      this._listen();
      this._connect();
    }

    _listen() {
      addEventListener("keydown", (e) => {
        if (e.ctrlKey || e.metaKey || e.altKey) return;
        const press = this.setup.presses.find((p) => p.key === e.code);
        if (press && !e.repeat) this.send(press.do);
        if (this.controls.press(e)) this.changed();
        else if (!press) return;
        this.complaint.textContent = "";
        e.preventDefault();
      });
      addEventListener("keyup", () => this.changed());
      addEventListener("blur", () => this.changed());
      // Nobody sees the robot then.
      document.addEventListener("visibilitychange", () => {
        if (document.hidden && this.now && this.now.phase === "running") this.send("pause");
      });
      for (const button of this.buttons) {
        button.onclick = () => {
          this.send(button.dataset.do);
          button.blur(); // or the space bar would press it again
        };
      }
    }

    _connect() {
      this.socket = new WebSocket(`ws://${location.host}${this.setup.socket}`);
      this.socket.onmessage = (event) => this._receive(JSON.parse(event.data));
      this.socket.onclose = (event) => {
        const taken = event.code === this.setup.taken;
        this._say(taken ? event.reason : this.now && this.now.phase === "done" ? "done; close this page" : "the command has ended", "");
        this.buttons.forEach((b) => (b.disabled = true));
        document.documentElement.setAttribute("data-ready", taken ? "taken" : "closed");
      };
    }

    // Sends the inputs, and a command with them if there is one.
    send(command) {
      if (this.socket.readyState !== WebSocket.OPEN) return;
      const state = this.controls.state();
      this.sent = JSON.stringify(state);
      this.socket.send(command ? JSON.stringify({ ...state, do: command }) : this.sent);
    }

    changed() {
      if (JSON.stringify(this.controls.state()) !== this.sent) this.send();
    }

    _receive(now) {
      if (now.error) {
        this.complaint.textContent = now.error;
        return;
      }
      if (now.phase === "running") this.send();
      this.live.push(now.poses, now.targets, performance.now(), now.fresh || !this.now);
      this.now = now;
      const slow = now.pace !== null && now.pace < 0.95 && now.phase === "running";
      const words = {
        ready: "ready: any movement starts the recording", running: "", paused: "paused", done: "done; close this page",
        ended: now.may_keep ? `${now.outcome}: keep it?` : now.outcome,
      };
      const pace = slow ? `${now.pace.toFixed(2)} of real time: this machine is slower` : "";
      this._say(words[now.phase] || pace, now.phase === "ended" ? (now.outcome === "won" ? "won" : "lost") : "");
      this.counts.textContent = `kept ${now.kept} of ${now.wanted} · start ${now.number} · furthest stage: ${now.stage} · hands: ${now.hands}`;
      this.clock.textContent = `${now.seconds.toFixed(1)} / ${now.limit.toFixed(0)} s`;
      for (const button of this.buttons) if (button.dataset.do === "keep") button.disabled = !now.may_keep;
      document.documentElement.setAttribute("data-phase", now.phase);
    }

    _say(text, kind) {
      this.banner.textContent = text;
      this.banner.className = `banner ${kind}`;
    }

    // A gamepad tells nothing by itself: looked at once per picture.
    _look() {
      const pad = this.controls.pad(), down = new Set();
      if (pad) pad.buttons.forEach((b, i) => b.pressed && down.add(i));
      const fresh = this.setup.presses.find((p) => down.has(p.button) && !this.pressed.has(p.button));
      this.pressed = down;
      if (fresh) this.send(fresh.do);
      else this.changed();
    }

    draw(at, seconds) {
      this._look();
      // A picture that stands still costs nothing: the simulation may need the processor.
      const still = at > this.live.came + this.live.gap + 1500;
      if (!RDP.fit(this.stage, this.frame) && still && !this.dirty) return;
      this.dirty = false;
      const place = this.live.sample(at), heading = this.live.heading(), rate = 1 - Math.exp(-4 * seconds);
      const jump = !this.focus || Math.hypot(...place.map((v, k) => v - this.focus[k])) > 1;
      this.focus = jump ? place : this.focus.map((v, k) => v + rate * (place[k] - v));
      const turn = Math.atan2(Math.sin(heading - this.turn), Math.cos(heading - this.turn));
      this.turn = jump ? heading : this.turn + rate * turn;
      const { clientWidth: width, clientHeight: height } = this.frame;
      const { target, eye } = this.orbit.aim(this.focus, width / height, this.turn);
      this.stage.draw([{ index: 0, x: 0, width, focus: place, target, eye }], true);
      this.ease.keepUp(this.stage, seconds);
      const kind = this.stage instanceof RDP.StageGL ? "webgl" : "2d";
      this.root.setAttribute("data-ready", kind);
      if (this.now && this.socket.readyState === WebSocket.OPEN) document.documentElement.setAttribute("data-ready", kind);
    }
  }

  RDP.teleop = function () {
    const page = new Page(document.querySelector("section.live"));
    let last = performance.now();
    const loop = (now) => {
      page.draw(now, Math.min(1, Math.max(0, now - last) / 1000));
      last = now;
      requestAnimationFrame(loop);
    };
    requestAnimationFrame(loop);
  };
})(window.RDP = window.RDP || {});
