// Draws replays on a plain 2-D canvas where there is no WebGL: shaded triangles, far ones first. Same face as StageGL.
(function (RDP) {
  "use strict";
  const THEMES = {
    light: { back: "#eef1f5", line: "#c9d1dc", shadow: "rgba(40,50,70,0.20)" },
    dark: { back: "#1a1f27", line: "#3a4454", shadow: "rgba(0,0,0,0.45)" },
  };
  const SUN = [0.32, -0.41, 0.85], FOV = (32 * Math.PI) / 180, NEAR = 0.05;

  // A surface of revolution around z through profile [[radius, z], ...], scaled by (sx, sy).
  function turned(profile, sides, sx, sy) {
    const points = [], faces = [];
    for (const [r, z] of profile) {
      for (let i = 0; i < sides; i++) {
        const a = (2 * Math.PI * i) / sides;
        points.push([sx * r * Math.cos(a), sy * r * Math.sin(a), z]);
      }
    }
    for (let k = 0; k + 1 < profile.length; k++) {
      for (let i = 0; i < sides; i++) {
        const j = (i + 1) % sides, o = k * sides;
        faces.push([o + i, o + j, o + sides + j, o + sides + i]);
      }
    }
    return { points, faces };
  }

  function arc(radius, half, steps) {
    const out = [];
    for (let i = 0; i <= steps; i++) {
      const a = -Math.PI / 2 + (Math.PI * i) / steps;
      if (half && i === steps / 2) out.push([radius * Math.cos(a), -half]);
      out.push([radius * Math.cos(a), radius * Math.sin(a) + (i < steps / 2 ? -half : half)]);
    }
    return out;
  }

  function solid(geom) {
    const [a, b, c] = geom.size;
    if (geom.type === "sphere") return turned(arc(a, 0, 8), 12, 1, 1);
    if (geom.type === "capsule") return turned(arc(a, b, 8), 12, 1, 1);
    if (geom.type === "cylinder") return turned([[0, -b], [a, -b], [a, b], [0, b]], 16, 1, 1);
    if (geom.type === "ellipsoid") return turned(arc(1, 0, 8).map(([r, z]) => [r, c * z]), 12, a, b);
    const points = [];
    for (let i = 0; i < 8; i++) points.push([i & 1 ? a : -a, i & 2 ? b : -b, i & 4 ? c : -c]);
    return { points, faces: [[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]] };
  }

  function rotate(q, v) {
    const [w, x, y, z] = q;
    const tx = 2 * (y * v[2] - z * v[1]), ty = 2 * (z * v[0] - x * v[2]), tz = 2 * (x * v[1] - y * v[0]);
    return [v[0] + w * tx + y * tz - z * ty, v[1] + w * ty + z * tx - x * tz, v[2] + w * tz + x * ty - y * tx];
  }

  const add = (a, b) => [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
  const sub = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const unit = (a) => {
    const n = Math.hypot(...a) || 1;
    return [a[0] / n, a[1] / n, a[2] / n];
  };

  // Projects world points for a camera; `see` returns [x, y, depth].
  class Eye {
    constructor(eye, target, x, width, height) {
      this.eye = eye;
      this.ahead = unit(sub(target, eye));
      this.right = unit(cross(this.ahead, [0, 0, 1]));
      this.up = cross(this.right, this.ahead);
      this.scale = height / 2 / Math.tan(FOV / 2);
      this.cx = x + width / 2;
      this.cy = height / 2;
    }

    see(p) {
      const d = sub(p, this.eye), depth = dot(d, this.ahead), s = this.scale / Math.max(depth, NEAR);
      return [this.cx + s * dot(d, this.right), this.cy - s * dot(d, this.up), depth];
    }
  }

  class View {
    constructor(replay) {
      this.replay = replay;
      this.solids = replay.geoms.filter((g) => g.type !== "plane").map((g) => {
        const shape = solid(g); // in the body's frame from here on
        shape.points = shape.points.map((p) => add(rotate(g.quat, p), g.pos));
        return Object.assign(shape, { body: g.body, rgba: g.rgba });
      });
      const plane = replay.geoms.find((g) => g.type === "plane");
      const body = plane && replay.bodies[plane.body].pose;
      this.ground = plane ? plane.pos[2] + (body ? body[2] : 0) : 0;
    }

    draw(pen, eye, focus, theme) {
      this._grid(pen, eye, focus, theme);
      const faces = [], shadow = new Path2D(), p = this.replay.poses;
      for (const s of this.solids) {
        const o = 7 * s.body, at = [p[o], p[o + 1], p[o + 2]], q = [p[o + 3], p[o + 4], p[o + 5], p[o + 6]];
        const world = s.points.map((v) => add(rotate(q, v), at)), seen = world.map((v) => eye.see(v));
        const dark = world.map((v) => {
          const h = (v[2] - this.ground) / SUN[2];
          return eye.see([v[0] - h * SUN[0], v[1] - h * SUN[1], this.ground]);
        });
        for (const face of s.faces) {
          const [a, , b] = face, last = face[3] === undefined ? face[2] : face[3];
          const normal = unit(cross(sub(world[b], world[a]), sub(world[last], world[face[1]])));
          if (dot(normal, SUN) > 0 && s.rgba[3] > 0.5) Eye.trace(shadow, face.map((i) => dark[i]));
          if (dot(normal, sub(world[a], eye.eye)) >= 0 || face.some((i) => seen[i][2] < NEAR)) continue;
          const depth = face.reduce((sum, i) => sum + seen[i][2], 0) / face.length;
          faces.push({ depth, path: face.map((i) => seen[i]), normal, rgba: s.rgba });
        }
      }
      pen.fillStyle = theme.shadow;
      pen.fill(shadow);
      faces.sort((a, b) => b.depth - a.depth);
      pen.lineWidth = 0.7;
      for (const f of faces) {
        const light = 0.5 + 0.16 * f.normal[2] + 0.42 * Math.max(0, dot(f.normal, SUN));
        const [r, g, b] = f.rgba.map((v) => Math.round(Math.min(1, v * light) * 255)), path = new Path2D();
        Eye.trace(path, f.path);
        pen.fillStyle = pen.strokeStyle = `rgba(${r},${g},${b},${f.rgba[3]})`;
        pen.fill(path);
        pen.stroke(path);
      }
      for (const m of this.replay.markers) if (m.now.visible) this._marker(pen, eye, m);
    }

    _grid(pen, eye, focus, theme) {
      const cx = Math.round(focus[0]), cy = Math.round(focus[1]), reach = 7;
      pen.strokeStyle = theme.line;
      pen.lineWidth = 1;
      for (let i = -reach; i <= reach; i++) {
        const rest = Math.sqrt(reach * reach - i * i);
        for (const [a, b] of [[[cx + i, cy - rest], [cx + i, cy + rest]], [[cx - rest, cy + i], [cx + rest, cy + i]]]) {
          this._segment(pen, eye, [...a, this.ground], [...b, this.ground], 16);
        }
      }
    }

    // A straight line in pieces, so that only what lies behind the camera is left out.
    _segment(pen, eye, a, b, pieces = 1) {
      pen.beginPath();
      for (let i = 0, was = false; i <= pieces; i++) {
        const w = i / pieces, s = eye.see([a[0] + w * (b[0] - a[0]), a[1] + w * (b[1] - a[1]), a[2] + w * (b[2] - a[2])]);
        const fine = s[2] > NEAR;
        if (fine && was) pen.lineTo(s[0], s[1]);
        else if (fine) pen.moveTo(s[0], s[1]);
        was = fine;
      }
      pen.stroke();
    }

    _marker(pen, eye, marker) {
      const { pos, quat } = marker.now, at = (i) => [pos[3 * i], pos[3 * i + 1], pos[3 * i + 2]];
      const line = (a, b, color = marker.color) => {
        pen.strokeStyle = color;
        this._segment(pen, eye, a, b);
      };
      const dotAt = (p, radius) => {
        const s = eye.see(p);
        if (!(s[2] > NEAR)) return;
        pen.fillStyle = marker.color;
        pen.beginPath();
        pen.arc(s[0], s[1], Math.max(2, (radius * eye.scale) / s[2]), 0, 7);
        pen.fill();
      };
      const local = (x, y, z) => add(rotate(quat, [x, y, z]), at(0)), [l, w] = marker.size;
      pen.lineWidth = 2.5;
      if (marker.kind === "frame") {
        line(at(0), local(l, 0, 0), "#ef4444");
        line(at(0), local(0, l, 0), "#22c55e");
        line(at(0), local(0, 0, l), "#3b82f6");
        dotAt(at(0), l * 0.17);
      } else if (marker.kind === "outline") {
        const c = [[1, 1], [1, -1], [-1, -1], [-1, 1]].map(([x, y]) => local((x * l) / 2, (y * w) / 2, 0));
        c.forEach((p, i) => line(p, c[(i + 1) % 4]));
        line(local(l / 2, 0, 0), local(l * 0.7, 0, 0));
      } else if (marker.kind === "sphere") {
        pen.globalAlpha = 0.6;
        dotAt(at(0), l);
        pen.globalAlpha = 1;
      } else {
        for (let i = 1; i < marker.points; i++) line(at(i - 1), at(i));
        for (let i = marker.kind === "arrow" ? 1 : 0; i < marker.points; i++) dotAt(at(i), l * 0.35);
      }
    }
  }

  Eye.trace = (path, points) => {
    path.moveTo(points[0][0], points[0][1]);
    for (let i = 1; i < points.length; i++) path.lineTo(points[i][0], points[i][1]);
    path.closePath();
  };

  class Stage2D {
    constructor(replays, themeName) {
      this.canvas = document.createElement("canvas");
      this.pen = this.canvas.getContext("2d");
      this.views = replays.map((r) => new View(r));
      this.setTheme(themeName);
    }

    setTheme(name) {
      this.theme = THEMES[name];
    }

    resize(width, height) {
      this.width = width;
      this.height = height;
      this.ratio = Math.min(window.devicePixelRatio || 1, this.limit || 2);
      this.canvas.width = Math.round(width * this.ratio);
      this.canvas.height = Math.round(height * this.ratio);
    }

    // For a machine that cannot keep up: pixels of the page instead of the screen's finer ones.
    lighten() {
      this.limit = 1;
      this.resize(this.width, this.height);
    }

    draw(panels) {
      const pen = this.pen;
      pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
      pen.lineJoin = pen.lineCap = "round";
      pen.fillStyle = this.theme.back;
      pen.fillRect(0, 0, this.width, this.height);
      for (const { index, x, width, focus, target, eye } of panels) {
        pen.save();
        pen.beginPath();
        pen.rect(x, 0, width, this.height);
        pen.clip();
        this.views[index].draw(pen, new Eye(eye, target, x, width, this.height), focus, this.theme);
        pen.restore();
      }
    }
  }

  RDP.Stage2D = Stage2D;
})(window.RDP = window.RDP || {});
