// What the viewer needs from three.js; bundled into three.bundle.min.js (see README.md for the command).
export {
  BufferAttribute, BufferGeometry, CanvasTexture, CapsuleGeometry, Color, ConeGeometry, CylinderGeometry,
  DirectionalLight, DoubleSide, Group, HemisphereLight, LatheGeometry, Line, LineBasicMaterial, Mesh,
  MeshBasicMaterial, MeshStandardMaterial, NeutralToneMapping, PCFShadowMap, PerspectiveCamera,
  PlaneGeometry, Quaternion, RepeatWrapping, BoxGeometry, SRGBColorSpace, Scene, ShadowMaterial, SphereGeometry,
  Vector2, Vector3, WebGLRenderer,
} from "three";
export { RoundedBoxGeometry } from "three/examples/jsm/geometries/RoundedBoxGeometry.js";
