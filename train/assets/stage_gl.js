// Draws replays with three.js: one renderer, one scene per replay, side by side through scissor rectangles.
(function (RDP) {
  "use strict";
  const UP_TURN = Math.PI / 2; // three.js builds cylinders along y, MuJoCo along z

  const THEMES = {
    light: {
      back: "#eef1f5", ground: "#e2e7ee", line: "#c3ccd8", fine: "#d5dce5", shadow: 0.26, sun: 2.3, sky: 2.2, rim: 0.9,
    },
    dark: {
      back: "#1a1f27", ground: "#252b36", line: "#465062", fine: "#303846", shadow: 0.5, sun: 2.2, sky: 1.7, rim: 1.8,
    },
  };

  // How many sides a round thing of this radius [m] needs to look round.
  const sides = (radius) => Math.round(Math.min(40, Math.max(14, 12 + 280 * radius)));

  // A cylinder along z with a small bevel, so that its rim catches the light.
  function cylinder(radius, half) {
    const b = Math.min(0.18 * radius, 0.18 * half, 0.008), points = [new THREE.Vector2(0, -half)];
    for (let i = 0; i <= 4; i++) {
      const a = (i / 4) * UP_TURN;
      points.push(new THREE.Vector2(radius - b + b * Math.sin(a), -half + b - b * Math.cos(a)));
    }
    for (let i = 0; i <= 4; i++) {
      const a = (i / 4) * UP_TURN;
      points.push(new THREE.Vector2(radius - b + b * Math.cos(a), half - b + b * Math.sin(a)));
    }
    points.push(new THREE.Vector2(0, half));
    return new THREE.LatheGeometry(points, sides(radius)).rotateX(UP_TURN);
  }

  function solid(geom) {
    const [a, b, c] = geom.size;
    switch (geom.type) {
      case "sphere": return new THREE.SphereGeometry(a, sides(a), Math.ceil(sides(a) * 0.6));
      case "ellipsoid": {
        const n = sides(Math.max(a, b, c));
        return new THREE.SphereGeometry(1, n, Math.ceil(n * 0.6)).scale(a, b, c);
      }
      case "capsule": return new THREE.CapsuleGeometry(a, 2 * b, Math.ceil(sides(a) / 4), sides(a)).rotateX(UP_TURN);
      case "cylinder": return cylinder(a, b);
      default: return new THREE.RoundedBoxGeometry(2 * a, 2 * b, 2 * c, 2, Math.min(0.22 * Math.min(a, b, c), 0.014));
    }
  }

  function tile(theme) {
    const n = 512, canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
    canvas.width = canvas.height = n;
    pen.fillStyle = theme.ground;
    pen.fillRect(0, 0, n, n);
    const rule = (at, width, color) => {
      pen.fillStyle = color;
      pen.fillRect(at - width / 2, 0, width, n);
      pen.fillRect(0, at - width / 2, n, width);
    };
    for (const part of [0.25, 0.5, 0.75]) rule(part * n, 3, theme.fine);
    rule(0, 10, theme.line);
    rule(n, 10, theme.line);
    const texture = new THREE.CanvasTexture(canvas);
    texture.wrapS = texture.wrapT = THREE.RepeatWrapping;
    texture.colorSpace = THREE.SRGBColorSpace;
    texture.anisotropy = 8;
    return texture; // one metre
  }

  // A disc around the camera's target whose rim fades into the background: floor without a horizon.
  function disc() {
    const radii = [0, 1.5, 3, 4.5, 6, 8, 10.5, 14], alpha = [1, 1, 1, 0.92, 0.72, 0.4, 0.14, 0], n = 64;
    const pos = [], color = [], index = [];
    radii.forEach((r, k) => {
      for (let i = 0; i < n; i++) {
        const a = (2 * Math.PI * i) / n;
        pos.push(r * Math.cos(a), r * Math.sin(a), 0);
        color.push(1, 1, 1, alpha[k]);
        if (k === 0) continue;
        const o = (k - 1) * n, j = (i + 1) % n;
        index.push(o + i, o + n + i, o + n + j, o + i, o + n + j, o + j);
      }
    });
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", new THREE.BufferAttribute(new Float32Array(pos), 3));
    geometry.setAttribute("uv", new THREE.BufferAttribute(new Float32Array((pos.length / 3) * 2), 2));
    geometry.setAttribute("color", new THREE.BufferAttribute(new Float32Array(color), 4));
    geometry.setIndex(index);
    return geometry;
  }

  class Floor {
    constructor(scene, theme) {
      this.paint = new THREE.MeshBasicMaterial({
        map: tile(theme), vertexColors: true, transparent: true, toneMapped: false, depthWrite: false,
      });
      this.geometry = disc();
      this.mesh = new THREE.Mesh(this.geometry, this.paint);
      this.mesh.renderOrder = -2;
      this.shade = new THREE.Mesh(new THREE.PlaneGeometry(14, 14),
        new THREE.ShadowMaterial({ opacity: theme.shadow, depthWrite: false }));
      this.shade.receiveShadow = true;
      this.shade.renderOrder = -1;
      this.mesh.add(this.shade);
      scene.add(this.mesh);
    }

    // Moves the disc under (x, y) and the shadow's sheet under the robot; the pattern stays put in the world.
    follow([x, y], z, focus) {
      this.mesh.position.set(x, y, z);
      this.shade.position.set(focus[0] - x, focus[1] - y, 0.0015);
      const pos = this.geometry.attributes.position, uv = this.geometry.attributes.uv;
      const bx = Math.floor(x), by = Math.floor(y);
      for (let i = 0; i < pos.count; i++) uv.setXY(i, pos.getX(i) + x - bx, pos.getY(i) + y - by);
      uv.needsUpdate = true;
    }

    theme(theme) {
      this.paint.map.dispose();
      this.paint.map = tile(theme);
      this.shade.material.opacity = theme.shadow;
    }
  }

  const glow = (color, opacity = 1) =>
    new THREE.MeshBasicMaterial({ color, transparent: opacity < 1, opacity, toneMapped: false, depthWrite: opacity === 1 });

  // A rod of unit length along +z from the origin.
  const rod = (radius) => new THREE.CylinderGeometry(radius, radius, 1, 12).rotateX(UP_TURN).translate(0, 0, 0.5);

  const MARKERS = {
    frame(marker, group) {
      const length = marker.size[0], turns = [["y", UP_TURN, "#ef4444"], ["x", -UP_TURN, "#22c55e"], ["", 0, "#3b82f6"]];
      for (const [axis, angle, color] of turns) {
        const arm = new THREE.Mesh(rod(length * 0.06), glow(color));
        arm.scale.z = length;
        if (axis) arm.rotation[axis] = angle;
        group.add(arm);
      }
      group.add(new THREE.Mesh(new THREE.SphereGeometry(length * 0.17, 20, 14), glow(marker.color)));
    },
    sphere(marker, group) {
      group.add(new THREE.Mesh(new THREE.SphereGeometry(marker.size[0], 28, 18), glow(marker.color, 0.55)));
    },
    outline(marker, group) {
      const [l, w] = marker.size, thick = 0.008;
      for (const side of [-1, 1]) {
        const long = new THREE.Mesh(new THREE.BoxGeometry(l + thick, thick, thick), glow(marker.color));
        const wide = new THREE.Mesh(new THREE.BoxGeometry(thick, w + thick, thick), glow(marker.color));
        long.position.y = (side * w) / 2;
        wide.position.x = (side * l) / 2;
        group.add(long, wide);
      }
      const fill = new THREE.Mesh(new THREE.PlaneGeometry(l, w), glow(marker.color, 0.22));
      fill.material.side = THREE.DoubleSide;
      const toe = new THREE.Mesh(new THREE.BoxGeometry(l * 0.2, thick, thick), glow(marker.color)); // shows the heading
      toe.position.x = l * 0.6;
      group.add(fill, toe);
    },
    path(marker, group) {
      for (let p = 0; p < marker.points; p++) {
        group.add(new THREE.Mesh(new THREE.SphereGeometry(marker.size[0] * 0.35, 12, 8), glow(marker.color)));
      }
      for (let p = 1; p < marker.points; p++) group.add(new THREE.Mesh(rod(marker.size[0] * 0.15), glow(marker.color)));
    },
    arrow(marker, group) {
      const s = marker.size[0];
      group.add(new THREE.Mesh(rod(s * 0.3), glow(marker.color)));
      group.add(new THREE.Mesh(new THREE.ConeGeometry(s * 0.8, s * 2, 20).rotateX(UP_TURN), glow(marker.color)));
    },
  };

  const Z = { x: 0, y: 0, z: 1 };
  const point = (pos, p) => new THREE.Vector3(pos[3 * p], pos[3 * p + 1], pos[3 * p + 2]);

  function span(mesh, a, b) {
    const along = b.clone().sub(a), length = along.length();
    mesh.visible = length > 1e-4; // also false for NaN
    if (!mesh.visible) return;
    mesh.position.copy(a);
    mesh.scale.z = length;
    mesh.quaternion.setFromUnitVectors(new THREE.Vector3(Z.x, Z.y, Z.z), along.divideScalar(length));
  }

  function placeMarker(marker, group) {
    const { pos, quat, visible } = marker.now, n = marker.points, kids = group.children;
    group.visible = visible;
    if (!visible) return;
    if (marker.kind === "path") {
      for (let p = 0; p < n; p++) {
        kids[p].position.copy(point(pos, p));
        kids[p].visible = Number.isFinite(pos[3 * p]);
        if (p > 0) span(kids[n + p - 1], point(pos, p - 1), point(pos, p));
      }
    } else if (marker.kind === "arrow") {
      span(kids[0], point(pos, 0), point(pos, 1));
      kids[1].position.copy(point(pos, 1));
      kids[1].quaternion.copy(kids[0].quaternion);
      kids[1].visible = kids[0].visible;
    } else {
      group.position.copy(point(pos, 0));
      group.quaternion.set(quat[1], quat[2], quat[3], quat[0]);
    }
  }

  class View {
    constructor(replay, theme, shadowPixels) {
      this.replay = replay;
      this.scene = new THREE.Scene();
      this.sky = new THREE.HemisphereLight("#ffffff", "#a9adb5", 1);
      this.sky.position.set(0, 0, 1);
      this.sun = new THREE.DirectionalLight("#fffaf2", 1);
      this.sun.castShadow = true;
      this.sun.shadow.mapSize.set(shadowPixels, shadowPixels);
      Object.assign(this.sun.shadow.camera, { left: -2.6, right: 2.6, top: 2.6, bottom: -2.6, near: 1, far: 14 });
      Object.assign(this.sun.shadow, { bias: -0.0004, normalBias: 0.008, radius: 5 });
      this.rim = new THREE.DirectionalLight("#dfeaff", 1); // from behind and below the sun, without shadow
      this.rim.target = this.sun.target;
      this.scene.add(this.sky, this.sun, this.rim, this.sun.target);
      this.groups = replay.bodies.map(() => new THREE.Group());
      this.groups.forEach((g) => this.scene.add(g));
      this.floors = [];
      const shapes = new Map(), paints = new Map();
      const once = (map, key, make) => map.get(key) || map.set(key, make()).get(key);
      for (const geom of replay.geoms) {
        if (geom.type === "plane") this._plane(geom, theme);
        else {
          const shape = once(shapes, geom.type + geom.size, () => solid(geom));
          const mesh = new THREE.Mesh(shape, once(paints, String(geom.rgba), () => View.paint(geom.rgba)));
          mesh.castShadow = mesh.receiveShadow = geom.rgba[3] > 0.5;
          mesh.position.set(...geom.pos);
          mesh.quaternion.set(geom.quat[1], geom.quat[2], geom.quat[3], geom.quat[0]);
          this.groups[geom.body].add(mesh);
        }
      }
      if (!replay.geoms.some((g) => g.type === "plane")) this.floors.push({ floor: new Floor(this.scene, theme), z: 0 });
      this.markers = replay.markers.map((m) => {
        const group = new THREE.Group();
        MARKERS[m.kind](m, group);
        this.scene.add(group);
        return group;
      });
      this.theme(theme);
    }

    static paint(rgba) {
      const [r, g, b, a] = rgba;
      const paint = new THREE.MeshStandardMaterial({ roughness: 0.52, metalness: 0.05, transparent: a < 1, opacity: a });
      paint.color.setRGB(r, g, b, THREE.SRGBColorSpace);
      return paint;
    }

    // A level endless plane becomes the fading floor; any other a sheet of its own size and colour.
    _plane(geom, theme) {
      const body = this.replay.bodies[geom.body].pose, endless = geom.size[0] === 0 || geom.size[0] > 8;
      const level = Math.abs(geom.quat[1]) + Math.abs(geom.quat[2]) < 1e-6;
      if (body && endless && level) {
        this.floors.push({ floor: new Floor(this.scene, theme), z: body[2] + geom.pos[2] });
        return;
      }
      const sheet = new THREE.Mesh(new THREE.PlaneGeometry(2 * (geom.size[0] || 20), 2 * (geom.size[1] || 20)),
        View.paint(geom.rgba));
      sheet.receiveShadow = true;
      sheet.material.side = THREE.DoubleSide;
      sheet.position.set(...geom.pos);
      sheet.quaternion.set(geom.quat[1], geom.quat[2], geom.quat[3], geom.quat[0]);
      this.groups[geom.body].add(sheet);
    }

    theme(theme) {
      this.scene.background = new THREE.Color(theme.back);
      this.sky.intensity = theme.sky;
      this.sun.intensity = theme.sun;
      this.rim.intensity = theme.rim;
      for (const { floor } of this.floors) floor.theme(theme);
    }

    update(focus, target) {
      const p = this.replay.poses;
      this.groups.forEach((g, i) => {
        const o = 7 * i;
        g.position.set(p[o], p[o + 1], p[o + 2]);
        g.quaternion.set(p[o + 4], p[o + 5], p[o + 6], p[o + 3]);
      });
      this.replay.markers.forEach((m, i) => placeMarker(m, this.markers[i]));
      this.sun.target.position.set(...focus);
      this.sun.position.set(focus[0] + 1.9, focus[1] - 2.4, focus[2] + 5);
      this.rim.position.set(focus[0] - 3, focus[1] + 3, focus[2] + 2);
      for (const { floor, z } of this.floors) floor.follow(target, z, focus);
    }
  }

  // Whether the processor does the drawing, so that costly extras are made smaller.
  function drawnBySoftware(gl) {
    const info = gl.getExtension("WEBGL_debug_renderer_info");
    return Boolean(info) && /swiftshader|llvmpipe|softpipe|software/i.test(gl.getParameter(info.UNMASKED_RENDERER_WEBGL));
  }

  class StageGL {
    // Throws where there is no WebGL.
    constructor(replays, themeName) {
      this.canvas = document.createElement("canvas");
      this.renderer = new THREE.WebGLRenderer({ canvas: this.canvas, antialias: true, powerPreference: "high-performance" });
      this.renderer.shadowMap.enabled = true;
      this.renderer.shadowMap.type = THREE.PCFShadowMap;
      this.renderer.toneMapping = THREE.NeutralToneMapping;
      this.renderer.setScissorTest(true);
      const soft = drawnBySoftware(this.renderer.getContext());
      this.theme = THEMES[themeName];
      this.views = replays.map((r) => new View(r, this.theme, soft ? 1024 : 2048));
      this.camera = new THREE.PerspectiveCamera(32, 1, 0.05, 80);
      this.camera.up.set(0, 0, 1);
      this.quality = 1; // of the picture in motion; at rest it is always full
      this.moving = false;
    }

    setTheme(name) {
      this.theme = THEMES[name];
      for (const view of this.views) view.theme(this.theme);
    }

    resize(width, height) {
      this.width = width;
      this.height = height;
      const ratio = Math.min(window.devicePixelRatio || 1, 2);
      this.renderer.setPixelRatio(this.moving ? ratio * this.quality : ratio);
      this.renderer.setSize(width, height, false);
    }

    // For a machine that cannot keep up: coarser pixels, at last no shadows.
    lighten() {
      if (this.quality < 0.5) {
        for (const view of this.views) view.sun.castShadow = false;
        return;
      }
      this.quality *= 0.75;
      this.resize(this.width, this.height);
    }

    // panels: [{index, x, width, focus, target, eye}]: a strip of the canvas in CSS pixels, the robot's place, the camera.
    draw(panels, moving) {
      if (moving !== this.moving) {
        this.moving = moving;
        if (this.quality < 1) this.resize(this.width, this.height);
      }
      for (const { index, x, width, focus, target, eye } of panels) {
        this.renderer.setViewport(x, 0, width, this.height);
        this.renderer.setScissor(x, 0, width, this.height);
        this.camera.aspect = width / this.height;
        this.camera.updateProjectionMatrix();
        this.camera.position.set(...eye);
        this.camera.lookAt(...target);
        this.views[index].update(focus, target);
        this.renderer.render(this.views[index].scene, this.camera);
      }
    }
  }

  RDP.StageGL = StageGL;
})(window.RDP = window.RDP || {});
