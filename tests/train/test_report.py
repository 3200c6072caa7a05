"""Reports and replays: one file that stands alone, poses that survive the packing, no overwrite by accident."""

import base64
import concurrent.futures
import html.parser
import json
import os
import re
import shutil
import signal
import subprocess
import time

import mujoco
import numpy as np
import pytest

from train import video
from train.replay import Caption, Marker, Replay, body_poses, decode
from train.report import ASSETS, EXTERNAL, SCRIPTS, Metric, Report, format_number
from train.video import BACKENDS, RAYS, write_video

ROBOT = """
<mujoco>
  <asset><material name="white" rgba="0.9 0.9 0.95 1"/></asset>
  <worldbody>
    <geom name="floor" type="plane" size="0 0 1" rgba="0.3 0.3 0.3 1"/>
    <body name="Trunk" pos="0 0 1">
      <freejoint/>
      <geom name="chest" type="box" size="0.1 0.15 0.2" material="white" group="1"/>
      <geom name="hull" type="capsule" size="0.2 0.2" group="3"/>
      <geom name="ghost" type="sphere" size="0.2" rgba="1 0 0 0"/>
      <body name="arm" pos="0 0.2 0.1">
        <joint name="shoulder" axis="0 1 0"/>
        <geom type="capsule" size="0.05 0.1" pos="0 0 -0.1" rgba="0.1 0.4 0.8 1" group="2"/>
        <geom type="ellipsoid" size="0.05 0.04 0.03" pos="0 0 -0.25"/>
        <geom type="cylinder" size="0.05 0.04" pos="0 0 0.1"/>
      </body>
    </body>
    <body name="crate" pos="2 0 0.2"><geom type="sphere" size="0.2"/></body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(ROBOT)


def walk(model, frames=60, seed=0):
    """A random trajectory (frames, nq) with unit quaternions."""
    rng = np.random.default_rng(seed)
    qpos = np.cumsum(rng.normal(0, 0.1, (frames, model.nq)), axis=0)
    qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
    return qpos


def angle(a, b):
    """Rotation between unit quaternions [rad]."""
    return 2 * np.arccos(np.clip(np.abs((a * b).sum(-1)), 0, 1))


class Page(html.parser.HTMLParser):
    """Tags that are open, attributes seen, content of JSON scripts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.tags, self.data = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]
        if tag not in ("meta", "br", "use"):
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in ("br", "use"):
            opened = self.open.pop()[0] if self.open else None
            assert opened == tag, f"</{tag}> closes {opened}"

    def handle_data(self, data):
        if self.open and self.open[-1] == ("script", {"type": "application/json"}):
            self.data.append(json.loads(data))


def full_report(model):
    """Every kind of content at least once."""
    replay = Replay(model, walk(model), 25.0, captions=[(0.0, "forward </script>"), (1.0, "turn")])
    x = np.arange(50.0)
    report = Report("Walk & turn", "seed `0`").add_section("Numbers")
    report.add_metrics(
        {"survival": Metric(0.98, target=0.95, ci95=(0.9, 1.0)), "error": Metric(0.2, "m", 0.1, "lower")}
    )
    report.add_metrics({"hands": Metric(None, "m", 0.05, "lower"), "steps": 1_000_000})
    report.add_table([{"task": "door <b>", "rate": 0.5}, {"task": "stairs", "rate": None}], caption="Success")
    report.add_text("# Head\n\nSome **bold** and `a < b`.\n\n- one\n- two\n\n```\nx < y\n```")
    report.add_section("Curves").add_plot(
        "Reward", {"a": (x, x**2), "b": x}, "step", "r", {"a": (x, x**2 + 9)}, targets={"goal": 5}
    )
    report.add_plot("Loss", {"a": np.exp(-x)}, "step", "loss", log_y=True)
    return report.add_replay("One", replay).add_replay("Two", {"before": replay, "after": replay.to_dict()})


def test_poses_survive_packing(model):
    qpos = walk(model)
    replay = Replay(model, qpos, 25.0)
    data = json.loads(json.dumps(replay.to_dict(), allow_nan=False))
    ids = [model.body(name).id for name in replay.bodies]
    pos, quat = body_poses(model, qpos, ids)
    got_pos, got_quat = decode(data)
    step = (np.array(data["hi"]) - data["lo"]) / 65534
    assert np.all(np.abs(got_pos - pos) <= 0.5 * step + 1e-9)
    assert angle(got_quat, quat).max() < 2e-4
    still = [b["name"] for b in data["bodies"] if "pose" in b]
    assert still == ["world", "crate"]
    assert data["bodies"][data["track"]]["name"] == "Trunk"


def test_geoms_filter_and_colours(model):
    geoms = Replay(model, walk(model, 2), 25.0).geoms
    assert [g["type"] for g in geoms] == ["plane", "box", "capsule", "ellipsoid", "cylinder", "sphere"]
    assert geoms[1]["rgba"] == [0.9, 0.9, 0.95, 1.0]  # from the material
    assert geoms[2]["size"][:2] == [0.05, 0.1]
    assert geoms[2]["pos"] == [0.0, 0.0, -0.1]
    assert "capsule" in [g["type"] for g in Replay(model, walk(model, 2), 25.0, groups=(3,)).geoms]


def test_unknown_geoms_become_boxes():
    xml = """<mujoco><asset><mesh name="m" vertex="0 0 0  1 0 0  0 2 0  0 0 3"/></asset><worldbody>
      <body><freejoint/><geom type="mesh" mesh="m"/></body></worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml)
    (geom,) = Replay(model, model.qpos0[None], 25.0).geoms
    assert geom["type"] == "box"
    assert min(geom["size"]) > 0.1


def test_thinning_keeps_time_and_markers(model):
    qpos = walk(model, 101)
    goal = qpos[:, :3].copy()
    goal[10:20] = np.nan
    marker = Marker("goal", "sphere", goal)
    replay = Replay(model, qpos, 50.0, markers=[marker], captions=[(1.5, "b"), Caption(0.0, "a", 1.0)])
    assert replay.fps == 25.0
    assert replay.frames == 51
    assert replay.duration == 2.0
    assert [(c.start, c.end, c.text) for c in replay.captions] == [(0.0, 1.0, "a"), (1.5, 2.0, "b")]
    np.testing.assert_array_equal(replay.markers[0].pos, goal[::2])
    codes = np.frombuffer(base64.b64decode(replay.to_dict()["markers"][0]["pos"]), "<i2").reshape(51, 3)
    assert list(np.flatnonzero((codes == -32768).all(1))) == [5, 6, 7, 8, 9]
    assert Replay(model, qpos, 25.0).frames == 101


def test_marker_kinds(model):
    qpos = walk(model, 4)
    markers = [
        Marker("f", "frame", np.zeros(3), np.array([1.0, 0, 0, 0])),
        Marker("o", "outline", np.zeros((4, 3)), np.tile([1.0, 0, 0, 0], (4, 1)), (0.2, 0.1)),
        Marker("p", "path", np.zeros((4, 6, 3))),
        Marker("a", "arrow", np.zeros((2, 3))),
    ]
    shown = Replay(model, qpos, 25.0, markers=markers).to_dict()["markers"]
    assert [(m["kind"], m["points"], "quat" in m) for m in shown] == [
        ("frame", 1, True), ("outline", 1, True), ("path", 6, False), ("arrow", 2, False),
    ]  # fmt: skip
    for bad in (
        Marker("x", "cloud", np.zeros(3)),
        Marker("x", "sphere", np.zeros((3, 3))),
        Marker("x", "arrow", np.zeros((3, 3))),
    ):
        with pytest.raises(ValueError, match="marker 'x'"):
            Replay(model, qpos, 25.0, markers=[bad])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q: q[:, :-1], r"qpos must be \(T, 8\)"),
        (lambda q: q[:0], "T > 0"),
        (lambda q: np.where(np.arange(len(q))[:, None] == 3, np.nan, q), "frame 3"),
    ],
)
def test_bad_trajectories_are_refused(model, change, words):
    with pytest.raises(ValueError, match=words):
        Replay(model, change(walk(model)), 25.0)


def test_unknown_track_is_refused(model):
    with pytest.raises(ValueError, match="nobody"):
        Replay(model, walk(model), 25.0, track="nobody")


def test_half_a_minute_of_a_big_robot_is_small():
    """30 s at 25 fps of 31 moving bodies: below 1 MB as JSON."""
    links = "".join(f'<body pos="0 0 0.1"><joint axis="{i % 2} {1 - i % 2} 0"/><geom size="0.05"/>' for i in range(30))
    body = f'<body name="Trunk"><freejoint/><geom size="0.1"/>{links}{"</body>" * 31}'
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{body}</worldbody></mujoco>")
    replay = Replay(model, walk(model, 750), 25.0)
    assert len(replay.bodies) == 31
    assert len(json.dumps(replay.to_dict())) < 1_000_000


def test_page_is_whole_and_stands_alone(model, tmp_path):
    path = full_report(model).write(tmp_path / "deep" / "report.html")
    text = path.read_text()
    page = Page(text)
    assert not page.open
    assert page.tags.count("svg") == 2
    assert page.tags.count("section") == 2
    assert page.tags.count("table") == 1
    for tag, name, value in page.attributes:
        if name in ("src", "srcset", "action", "poster") or (name.endswith("href") and tag != "use"):
            assert value.startswith("#"), (tag, name, value)
    assert not re.search(
        r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//|@import|import\s*\(?["']https?:|url\(\s*["']?https?:""", text
    )
    assert not {"link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert "default-src 'none'" in text
    assert len(path.read_bytes()) < 1_000_000
    assert [len(d["panels"]) for d in page.data] == [1, 2]
    assert page.data[0]["panels"][0]["replay"]["captions"][0]["text"] == "forward </script>"
    assert text.count('class="badge met"') == 1
    assert text.count('class="badge missed"') == 1
    assert "not measured" in text
    assert "door &lt;b&gt;" in text
    assert "<strong>bold</strong>" in text
    assert "<code>a &lt; b</code>" in text
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert "Permission is hereby granted" in text  # the licence travels with three.js
    assert list(tmp_path.glob("deep/.*")) == []


def test_page_without_motion_carries_no_viewer():
    page = Report("Plain").add_text("hello").render()
    assert len(page) < 30_000
    assert "data-ready" in page


def test_same_content_same_bytes(model):
    assert full_report(model).render() == full_report(model).render()


@pytest.mark.parametrize(
    "text",
    [
        '<img src="https://x.org/a.png">',
        "<a href=//x.org>x</a>",
        '<style>@import "x"</style>',
        "<p style='background:url(http://x)'>",
    ],
)
def test_outside_references_are_refused(text, tmp_path):
    with pytest.raises(ValueError, match="refers outside"):
        Report("x").add_text(text).write(tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_vendored_scripts_are_clean():
    for name in SCRIPTS:
        text = (ASSETS / name).read_text()
        assert not EXTERNAL.search(text)
        assert "</script" not in text
    assert (ASSETS / "three.bundle.min.js").stat().st_size < 800_000


def test_existing_file_is_kept_unless_told(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        Report("x").write(path)
    assert path.read_text() == "mine"
    Report("x").write(path, overwrite=True)
    assert "<h1>x</h1>" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_stretches_of_x_are_shaded():
    plain, shaded = (
        Report("x").add_plot("t", {"a": [1, 2, 3]}, "x", "y", shaded=turns).render() for turns in ((), [(0.5, 1.5)])
    )
    assert "opacity: 0.5" not in plain and "opacity: 0.5" in shaded


def test_bands_need_their_series():
    with pytest.raises(ValueError, match="no series: b"):
        Report("x").add_plot("t", {"a": [1, 2]}, "x", "y", {"b": ([0, 1], [2, 3])})


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.98, "0.98"), (12345.678, "12346"), (1_000_000, "1,000,000"), (1e-7, "1e−07"), (None, "–"), (float("nan"), "–"),
     (-0.5, "−0.5"), (True, "yes"), (np.float32(0.25), "0.25"), (0, "0"), ("door", "door"), (0.0313, "0.0313")],
)  # fmt: skip
def test_numbers_read_well(value, text):
    assert format_number(value) == text


def test_targets():
    assert Metric(0.95, target=0.95).met is True
    assert Metric(0.2, target=0.1, better="lower").met is False
    assert Metric(float("nan"), target=1.0).met is None
    assert Metric(1.0).met is None


def test_video_names_its_reason(model, tmp_path):
    video = write_video(tmp_path / "v.mp4", model, walk(model, 3), 25.0, (64, 48), backends=("no-such-backend",))
    assert not video
    assert video.path is None
    assert "no-such-backend" in video.reason
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="even"):
        write_video(tmp_path / "v.mp4", model, walk(model, 3), 25.0, (63, 48))


def test_a_drawing_that_is_stopped_leaves_nobody_behind(model, tmp_path):
    """Neither the process that draws nor the encoder that it starts."""
    frames = walk(model, 4000)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(write_video, tmp_path / "v.mp4", model, frames, 25.0, (320, 240), backends=(RAYS, RAYS))
        while not video._drawing:
            time.sleep(0.05)
        (child,) = video._drawing
        video.stop_drawing()
        assert future.result(timeout=20.0).reason == "stopped"
    assert child.returncode == -signal.SIGKILL and list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


@pytest.mark.parametrize("backends", [BACKENDS, (RAYS,)])
def test_video_is_written_with_opengl_and_without(backends, model, tmp_path):
    video = write_video(tmp_path / "v.mp4", model, walk(model, 5), 25.0, (64, 48), timeout_s=60.0, backends=backends)
    assert video.backend in backends, video.reason  # rays need nothing of the machine
    assert video.path.stat().st_size > 500
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on PATH")
def test_page_runs_in_a_browser(model, tmp_path):
    """The plain drawing, which needs no OpenGL, ends up ready at the time asked for."""
    path = full_report(model).write(tmp_path / "report.html")
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1000,6000", "--dump-dom", f"{path.as_uri()}#t=1.2&gl=0",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the browser did not start in time")
    if done.returncode or "<html" not in done.stdout:
        pytest.skip("the browser does not run here")
    assert re.search(r'<html[^>]* data-ready="2"', done.stdout)
    assert 'data-ready="2d"' in done.stdout
    assert "1.2 / 2.4 s" in done.stdout
