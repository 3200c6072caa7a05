"""A small contact-rich robot for physics tests: everything that the contract carries, little to compile."""

import mujoco
import numpy as np

# Crouching biped: free trunk, hip and knee per leg, two contact spheres per foot, one gravity-compensated arm with a
# payload body, self-contact pair, and a hinged door held by an equality constraint.
XML = """
<mujoco>
  <option timestep="0.005" integrator="implicitfast" solver="Newton" iterations="6" ls_iterations="10" cone="pyramidal"/>
  <default>
    <joint damping="0.1" armature="0.02"/>
    <geom contype="0" conaffinity="0" friction="0.9 0.02 0.01"/>
    <position kp="80" kv="3" forcerange="-60 60"/>
  </default>
  <worldbody>
    <geom name="floor" type="plane" size="0 0 1"/>
    <body name="trunk" pos="0 0 0.62">
      <freejoint name="root"/>
      <site name="imu"/>
      <geom name="trunk" type="box" size="0.06 0.1 0.12" mass="4"/>
      {legs}
      <body name="arm" pos="0.02 0 0.1" gravcomp="1">
        <joint name="shoulder" axis="0 1 0" range="-2 2" limited="true"/>
        <geom name="arm" type="capsule" fromto="0 0 0 0.3 0 0" size="0.03" mass="0.8"/>
        <body name="payload" pos="0.3 0 0"><geom type="sphere" size="0.02" mass="0.001"/></body>
      </body>
    </body>
    <body name="door" pos="0 2 1">
      <joint name="door" axis="0 0 1"/>
      <geom type="box" size="0.4 0.02 0.9" pos="0.4 0 0" mass="5"/>
    </body>
  </worldbody>
  <contact>
    {pairs}
    <pair geom1="shank0" geom2="shank1" condim="1"/>
  </contact>
  <equality><joint name="latch" joint1="door"/></equality>
  <actuator>
    {servos}
    <position name="shoulder" joint="shoulder"/>
    <motor name="push" joint="door" forcelimited="false"/>
  </actuator>
  <sensor>
    <gyro name="gyro" site="imu"/>
    <accelerometer name="accelerometer" site="imu"/>
    <framequat name="quat" objtype="site" objname="imu"/>
    <subtreecom name="com" body="trunk"/>
    <subtreelinvel name="comvel" body="trunk"/>
    <jointactuatorfrc name="torque" joint="knee0"/>
  </sensor>
</mujoco>
"""

LEG = """
<body name="thigh{i}" pos="0 {y} -0.1">
  <joint name="hip{i}" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 -0.25" size="0.04" mass="1.2"/>
  <body name="shank{i}" pos="0 0 -0.25">
    <joint name="knee{i}" axis="0 1 0"/>
    <geom name="shank{i}" type="capsule" fromto="0 0 0 0 0 -0.25" size="0.03" mass="0.8"/>
    <geom name="heel{i}" type="sphere" pos="-0.06 0 -0.25" size="0.03" mass="0.1"/>
    <geom name="toe{i}" type="sphere" pos="0.12 0 -0.25" size="0.03" mass="0.1"/>
  </body>
</body>
"""


def small_model() -> mujoco.MjModel:
    """nq 13, nv 12, nu 6, neq 1."""
    return mujoco.MjModel.from_xml_string(
        XML.format(
            legs="".join(LEG.format(i=i, y=y) for i, y in enumerate((0.08, -0.08))),
            pairs="".join(
                f'<pair geom1="{part}{i}" geom2="floor" condim="3" friction="0.9 0.9 0.01 0.001 0.001"/>'
                for i in range(2)
                for part in ("heel", "toe")
            ),
            servos="".join(f'<position name="{j}{i}" joint="{j}{i}"/>' for i in range(2) for j in ("hip", "knee")),
        )
    )


def starts(model: mujoco.MjModel, lanes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(lanes, nq)`, `(lanes, nv)`, `(lanes, nu)` float32: crouching states just above the ground, moving a little."""
    rng = np.random.default_rng(seed)
    qpos = np.tile(model.qpos0, (lanes, 1))
    qpos[:, 2] = 0.61 + rng.uniform(0, 0.05, lanes)
    qpos[:, 7:11] = np.array([0.25, -0.5, 0.25, -0.5]) + rng.normal(0, 0.1, (lanes, 4))
    qpos[:, 11] = rng.uniform(-0.5, 0.5, lanes)
    qvel = rng.normal(0, 0.3, (lanes, model.nv))
    qvel[:, -1] = 0
    ctrl = np.concatenate([qpos[:, 7:12], np.zeros((lanes, 1))], -1) + rng.normal(0, 0.1, (lanes, model.nu))
    return tuple(np.asarray(a, np.float32) for a in (qpos, qvel, ctrl))
