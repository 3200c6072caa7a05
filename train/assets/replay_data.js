// A replay's dictionary (see train/replay.py) decoded and sampled at any time. No drawing here.
(function (RDP) {
  "use strict";
  const LEVELS = 32767, HIDDEN = -32768;

  function int16(text) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Int16Array(bytes.buffer);
  }

  // Codes to numbers; lo and hi give the range of each of `width` columns. A hidden point becomes NaN.
  function restore(codes, lo, hi, width) {
    const out = new Float32Array(codes.length);
    for (let i = 0; i < codes.length; i++) {
      const c = i % width;
      out[i] = codes[i] === HIDDEN ? NaN : lo[c] + (codes[i] + LEVELS) / (2 * LEVELS) * (hi[c] - lo[c]);
    }
    return out;
  }

  function mixPoint(out, o, a, i, b, j, w) {
    for (let k = 0; k < 3; k++) out[o + k] = a[i + k] + (b[j + k] - a[i + k]) * w;
  }

  // Normalised mix of the quaternions at a[i] and b[j] along the shorter arc.
  function mixQuat(out, o, a, i, b, j, w) {
    let dot = 0, norm = 0;
    for (let k = 0; k < 4; k++) dot += a[i + k] * b[j + k];
    const sign = dot < 0 ? -1 : 1;
    for (let k = 0; k < 4; k++) {
      const v = a[i + k] * (1 - w) + sign * b[j + k] * w;
      out[o + k] = v;
      norm += v * v;
    }
    norm = Math.sqrt(norm) || 1;
    for (let k = 0; k < 4; k++) out[o + k] /= norm;
  }

  class Replay {
    constructor(data) {
      Object.assign(this, {
        fps: data.fps, frames: data.frames, bodies: data.bodies, geoms: data.geoms, captions: data.captions,
      });
      this.duration = (data.frames - 1) / data.fps;
      const unitLo = [-1, -1, -1, -1], unitHi = [1, 1, 1, 1];
      this.pos = restore(int16(data.pos), data.lo, data.hi, 3);
      this.quat = restore(int16(data.quat), unitLo, unitHi, 4);
      this.moving = [];
      this.poses = new Float32Array(7 * data.bodies.length); // x y z, w x y z of every body, at the last sampled time
      data.bodies.forEach((body, i) => {
        if (body.pose) this.poses.set(body.pose, 7 * i);
        else this.moving.push(i);
      });
      this.markers = data.markers.map((m) => ({
        name: m.name, kind: m.kind, color: m.color, size: m.size, points: m.points,
        track: restore(int16(m.pos), data.lo, data.hi, 3),
        quats: m.quat ? restore(int16(m.quat), unitLo, unitHi, 4) : null,
        now: { visible: false, pos: new Float32Array(3 * m.points), quat: new Float32Array([1, 0, 0, 0]) },
      }));
      this.track = data.track;
      this._smoothTrack(data.track);
    }

    // Which way the tracked body faces at the last sampled time [rad].
    heading() {
      const o = 7 * this.track + 3, [w, x, y, z] = this.poses.subarray(o, o + 4);
      return Math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z));
    }

    // Where the camera looks, per frame: the tracked body averaged over +-0.6 s, at its mean height.
    _smoothTrack(body) {
      const n = this.frames, column = this.moving.indexOf(body), reach = Math.round(0.6 * this.fps);
      const raw = new Float32Array(3 * n);
      for (let t = 0; t < n; t++) {
        for (let k = 0; k < 3; k++) {
          raw[3 * t + k] = column < 0 ? this.poses[7 * body + k] : this.pos[3 * (t * this.moving.length + column) + k];
        }
      }
      this.path = new Float32Array(3 * n);
      for (let t = 0; t < n; t++) {
        let total = 0;
        const sum = [0, 0, 0];
        for (let s = -2 * reach; s <= 2 * reach; s++) {
          const weight = Math.exp(-0.5 * (s / (reach || 1)) ** 2), at = Math.min(n - 1, Math.max(0, t + s));
          total += weight;
          for (let k = 0; k < 3; k++) sum[k] += weight * raw[3 * at + k];
        }
        for (let k = 0; k < 3; k++) this.path[3 * t + k] = sum[k] / total;
      }
    }

    // Sets `poses` and the markers' `now` to time t [s]; returns the camera's target [x, y, z].
    sample(t) {
      const f = Math.min(this.frames - 1, Math.max(0, t * this.fps)), i = Math.floor(f);
      const j = Math.min(this.frames - 1, i + 1), w = f - i, m = this.moving.length;
      for (let c = 0; c < m; c++) {
        const o = 7 * this.moving[c];
        mixPoint(this.poses, o, this.pos, 3 * (i * m + c), this.pos, 3 * (j * m + c), w);
        mixQuat(this.poses, o + 3, this.quat, 4 * (i * m + c), this.quat, 4 * (j * m + c), w);
      }
      for (const marker of this.markers) this._sampleMarker(marker, i, j, w);
      const target = [0, 0, 0];
      mixPoint(target, 0, this.path, 3 * i, this.path, 3 * j, w);
      return target;
    }

    _sampleMarker(marker, i, j, w) {
      const n = marker.points, now = marker.now;
      now.visible = false;
      for (let p = 0; p < n; p++) {
        const a = 3 * (i * n + p), b = 3 * (j * n + p);
        const jump = Math.hypot(marker.track[b] - marker.track[a], marker.track[b + 1] - marker.track[a + 1]);
        mixPoint(now.pos, 3 * p, marker.track, a, marker.track, jump < 0.1 ? b : a, w); // a goal that jumps does not slide
        if (Number.isFinite(now.pos[3 * p])) now.visible = true;
      }
      if (marker.quats) mixQuat(now.quat, 0, marker.quats, 4 * i, marker.quats, 4 * j, w);
    }

    captionAt(t) {
      let text = "";
      for (const c of this.captions) if (t >= c.start - 1e-9 && (t < c.end || c.end >= this.duration)) text = c.text;
      return text;
    }
  }

  // What happens now: a scene of one frame (`Replay`) whose poses are pushed as they come and shown one push late, so that motion
  // between two of them is smooth.
  class Live extends Replay {
    constructor(scene) {
      super(scene);
      this.last = this.poses.slice();
      this.next = this.poses.slice();
      this.came = 0;
      this.gap = 100;
    }

    // Poses of all bodies (7 numbers each) and the places of the markers (3 each); a jump is not smoothed. `now` in ms.
    push(poses, places, now, jump) {
      this.gap = Math.min(500, Math.max(30, now - this.came));
      this.came = now;
      this.last = jump ? Float32Array.from(poses) : this.next;
      this.next = Float32Array.from(poses);
      this.markers.forEach((m, i) => {
        m.now.pos.set(places[i]);
        m.now.visible = true;
      });
    }

    // Sets `poses` to what is shown at `now` [ms]; returns the place of the tracked body.
    sample(now) {
      const w = Math.min(1, (now - this.came) / this.gap) || 0;
      for (let o = 0; o < this.poses.length; o += 7) {
        mixPoint(this.poses, o, this.last, o, this.next, o, w);
        mixQuat(this.poses, o + 3, this.last, o + 3, this.next, o + 3, w);
      }
      return [...this.poses.subarray(7 * this.track, 7 * this.track + 3)];
    }
  }

  Object.assign(RDP, { Replay, Live });
})(window.RDP = window.RDP || {});
