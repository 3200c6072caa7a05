"""Teleoperation through its real interface: what is recorded, what is refused, who may drive, what survives a client that goes."""

import contextlib
import dataclasses
import functools
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from envs.t1 import gait, rotations
from envs.tasks.catalog import make_expert
from rdp_jax.config import ConfigError
from rdp_jax.data import episodes as E
from train.cli import main
from train.collect import _previous
from train.demonstrations import FILE, from_played
from train.pretrain import load_demonstrations, normalised
from train.rollouts import EpisodeRunner
from train.task_args import CollectArgs, PretrainArgs, TeleopArgs
from train.tasks import HumanoidStage
from train.teleop import STREAM, Shelf
from train.teleop_input import InputError
from train.teleop_page import page
from train.teleop_server import TAKEN, Pace, Server, listen
from train.teleop_session import Robot, Session

ROOT = Path(__file__).parents[2]
KEYBOARD_STARTS = 6
KEY = jax.random.fold_in(jax.random.key(0), STREAM)


class Client:
    """A scripted client on loopback."""

    def __init__(self, address):
        self.socket = connect(address.replace("http", "ws") + "socket", proxy=None, open_timeout=30)
        self.now = self.read()

    def read(self):
        found = json.loads(self.socket.recv(timeout=60))
        if "error" not in found:
            self.now = found
        return found

    def say(self, **message):
        """Sends, and returns the answer: an error, or the new state."""
        self.socket.send(json.dumps(message))
        found = self.read()
        if "error" in found:
            self.read()  # the state follows
        return found

    def close(self):
        self.socket.close()


@pytest.fixture(scope="module")
def stage():
    return HumanoidStage(TeleopArgs(backend="native"))


@pytest.fixture(scope="module")
def robot(stage):
    return Robot(stage.env, stage.params)


class Teleop:
    """A running server over a directory, and its clients."""

    def __init__(self, robot, args, period=0.0):
        self.shelf, self.path = Shelf(args), args.out / FILE
        store = functools.partial(self.shelf.add, robot.env)
        self.session = Session(robot, KEY, store, args.episodes, self.shelf.counts, args.keep_all)
        listening = listen(0)
        self.server = Server(
            self.session, page("pickup", self.session.scene, listening.getsockname()[1]), listening, period
        )

    def __enter__(self):
        self.server.__enter__()
        return self

    def __exit__(self, *error):
        self.server.__exit__(*error)

    @contextlib.contextmanager
    def client(self):
        found = Client(self.server.address)
        try:
            yield found
        finally:
            found.close()

    def idle(self, seconds=10.0):
        """Waits until nobody drives."""
        assert self.server._driver.acquire(timeout=seconds)
        self.server._driver.release()


def wanting(out, **fields):
    return TeleopArgs(**{"out": out, "episodes": 3, "backend": "native", **fields})


def played_by_expert(client, session, act, expert):
    """One episode driven by the expert's actions through the socket."""
    memory = jax.jit(expert.start)(jax.random.key(client.now["number"]), session.state)
    while client.now["phase"] in ("ready", "running"):
        memory, action = act(memory, session.state)
        client.say(action=[float(x) for x in np.asarray(action)])
    return client.now["outcome"]


class Recorded:
    """A `train.rollouts.Player` that repeats the actions `(steps, 1, Da)` that are its parameters."""

    def start(self, key, states):
        return jnp.int32(0)

    def act(self, memory, states, params):
        return memory + 1, params[memory]

    def intended(self, memory, action):
        return action


@pytest.fixture(scope="module")
def recorded(robot, tmp_path_factory):
    """A directory with one success, driven by the expert through the socket; also what the session remembers."""
    out = tmp_path_factory.mktemp("teleop")
    expert = make_expert("pickup", robot.env)
    with Teleop(robot, wanting(out)) as running, running.client() as client:
        act = jax.jit(expert.act)
        for _ in range(6):
            if played_by_expert(client, running.session, act, expert) == "won":
                break
            assert client.now["may_keep"] is False
            client.say(do="discard")
        assert client.now["outcome"] == "won" and client.now["may_keep"]
        running.won = running.session.played()
        client.say(do="keep")
        assert (client.now["kept"], client.now["phase"]) == (1, "ready")
    return out, running


@pytest.mark.slow
def test_a_demonstration_is_what_collect_would_record(robot, recorded):
    out, running = recorded
    kept = E.load(out / FILE)
    assert len(kept) == 1 and kept.success.all()
    steps, number = int(kept.length[0]), int(kept.seed[0])
    # The same starts and actions through the environment that played: the same success, frame by frame.
    session = Session(robot, KEY, lambda *_: 0, 3, {"next": number})
    for i in range(steps):
        np.testing.assert_array_equal(session._now["frame"], kept.obs[i])
        session.hear({"action": kept.action[i].tolist()})
        session.step()
    assert session.outcome == "won" and session.played().steps[0] == steps
    # And through the batched recorder of `rdp collect`.  That is another program, whose roundings differ: contacts make two rows
    # of steps drift apart, so they are compared while the robot sets out.
    runner = EpisodeRunner(robot.env, Recorded(), record=True)
    # As many as there may be steps, so that the program is the same whatever was played.
    actions = np.resize(kept.action[:, None], (robot.env.spec.episode_steps, 1, 23))
    actions[steps:] = kept.action[-1]
    played = runner.play(KEY, np.array([number]), robot.params, jnp.asarray(actions))
    collected = from_played(robot.env, played, np.array([0]), {}, tried=1, won=1)
    for name, ours in {"obs": kept.obs, **kept.extras}.items():
        theirs = {"obs": collected.obs, **collected.extras}[name]
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
        np.testing.assert_allclose(ours[:10], theirs[:10], atol=2e-3)
        assert np.abs(np.diff(theirs[:10], axis=0)).max() > 5e-3  # there is something to compare
    np.testing.assert_array_equal(kept.action[:10], collected.action[:10])
    np.testing.assert_array_equal(kept.reward, np.eye(1, steps, steps - 1)[0])
    for name in ("obs", "action", "reward", "length", "success", "seed"):
        ours, theirs = getattr(kept, name), getattr(collected, name)
        assert (ours.dtype, ours.shape[1:]) == (theirs.dtype, theirs.shape[1:]), name
    assert kept.extras.keys() == collected.extras.keys()
    assert kept.extras["qpos"].dtype == collected.extras["qpos"].dtype
    assert set(collected.metadata) <= set(kept.metadata)
    for name in ("task", "control_dt"):
        assert kept.metadata[name] == collected.metadata[name]
    for name in ("observations", "actions"):
        assert kept.metadata[name] == [list(pair) for pair in collected.metadata[name]]


@pytest.mark.slow
def test_pretrain_takes_it(recorded):
    args = PretrainArgs(task="pickup", data=recorded[0])
    found = load_demonstrations(args)
    (train, validation), bundle = normalised(args, found)
    assert train.obs.shape == (int(found.length[0]), 8 * found.obs.shape[1]) and len(validation.obs) == 0
    assert bool(jnp.isfinite(train.obs).all())


@pytest.mark.slow
def test_a_directory_is_gone_on_with_by_its_own_recipe_only(robot, recorded, tmp_path):
    out = tmp_path / "demos"
    shutil.copytree(recorded[0], out)
    with pytest.raises(ConfigError, match="--resume"):
        Shelf(wanting(out))
    for field, value in (("seed", 1), ("start_range", 2.0), ("physics_dt", 0.01), ("keep_all", True)):
        with pytest.raises(ConfigError, match="recipe"):
            Shelf(wanting(out, resume=True, **{field: value}))
    shelf = Shelf(wanting(out, resume=True))
    shelf.check_fits(robot.env)
    number = int(shelf.kept.seed[0])
    assert shelf.counts == {"tried": number + 1, "won": 1, "next": number + 1, "kept": 1}
    # Enough is there already: nothing to wait for.
    with Teleop(robot, wanting(out, resume=True, episodes=1)) as running:
        running.server.wait()


@pytest.mark.slow
def test_mixed_into_what_collect_wrote(robot, recorded, tmp_path):
    collect = CollectArgs(out=tmp_path, episodes=2, seed=5, resume=True, backend="native")
    recipe = _previous(collect)[0]
    one = E.load(recorded[0] / FILE)
    expert = dataclasses.replace(
        one,
        metadata={k: v for k, v in one.metadata.items() if k != "teleop"} | {"recipe": recipe, "tried": 8, "won": 7},
    )
    E.save(tmp_path / FILE, expert)
    assert len(_previous(collect)[1]) == 1
    Shelf(wanting(tmp_path, resume=True)).close({"tried": 0, "won": 0, "next": 0})  # looked at, and left as it is
    assert len(_previous(collect)[1]) == 1
    with pytest.raises(ConfigError, match="--resume"):
        Shelf(wanting(tmp_path))
    with pytest.raises(ConfigError, match="recipe"):
        Shelf(wanting(tmp_path, resume=True, start_range=2.0))
    shelf = Shelf(wanting(tmp_path, resume=True))
    shelf.check_fits(robot.env)
    assert shelf.add(robot.env, recorded[1].won, {"tried": 2, "won": 1, "next": 2}) == 2
    mixed = E.load(tmp_path / FILE)
    assert len(mixed) == 2 and (mixed.metadata["tried"], mixed.metadata["won"]) == (10, 8)
    assert mixed.metadata["recipe"]["at_once"] == 8 and mixed.metadata["recipe"]["teleop"]["seed"] == 0
    # The expert would cut off what a person added.
    with pytest.raises(ConfigError, match="recipe"):
        _previous(collect)
    # Another call goes on.
    assert Shelf(wanting(tmp_path, resume=True)).counts == {"tried": 2, "won": 1, "next": 2, "kept": 2}
    broken = dataclasses.replace(mixed, metadata={**mixed.metadata, "observations": [["box", 9]]})
    E.save(tmp_path / FILE, broken, overwrite=True)
    with pytest.raises(E.DataError, match="observations"):
        Shelf(wanting(tmp_path, resume=True)).check_fits(robot.env)


@pytest.mark.slow
def test_a_client_that_goes_loses_nothing_that_was_kept(robot, recorded, tmp_path):
    out = tmp_path / "demos"
    shutil.copytree(recorded[0], out)
    before = (out / FILE).read_bytes()
    with Teleop(robot, wanting(out, resume=True)) as running:
        gone = Client(running.server.address)
        for _ in range(3):
            gone.say(keys=["KeyW"])
        assert gone.now["step"] == 3
        gone.socket.socket.shutdown(socket.SHUT_RDWR)  # no farewell
        running.idle()
        assert running.session.phase == "paused"
        with running.client() as back:
            assert (back.now["phase"], back.now["step"], back.now["kept"]) == ("paused", 3, 1)
            back.say(keys=["KeyW"])
            assert back.now["step"] == 3
            back.say(do="pause", keys=["KeyW"])
            assert (back.now["phase"], back.now["step"]) == ("running", 4)
            back.say(do="finish")
            assert back.now["phase"] == "done"
        running.server.wait()
    assert (out / FILE).read_bytes() == before
    assert [p.name for p in out.iterdir()] == [FILE]


@pytest.mark.slow
def test_one_driver_at_a_time(robot, tmp_path):
    with Teleop(robot, wanting(tmp_path)) as running:
        with running.client() as first:
            with pytest.raises(ConnectionClosed) as closed:
                Client(running.server.address)
            assert closed.value.rcvd.code == TAKEN and "somebody else" in closed.value.rcvd.reason
            first.say(keys=["KeyW"])
            assert first.now["step"] == 1
        running.idle()
        with running.client() as second:
            assert second.now["phase"] == "paused"


@pytest.mark.slow
def test_bad_messages_change_nothing(robot, tmp_path):
    with Teleop(robot, wanting(tmp_path)) as running, running.client() as client:
        for message, told in (
            ({"do": "jump"}, "do='jump', allowed: pause, keep"),
            ({"do": "keep"}, "allowed: after an episode was won"),
            ({"action": [0.0] * 22}, "allowed: 23 numbers"),
            ({"action": [float("nan")] * 23}, "finite"),
            ({"action": [10**400] + [0] * 22}, "finite"),
            ({"keys": "KeyW"}, "keys='KeyW'"),
            ({"key": ["KeyW"]}, "key=['KeyW'], allowed: do, keys"),
        ):
            assert told in client.say(**message)["error"]
        for text in ("nonsense", "[1]", "[" * 30000, '{"action": [' + "9" * 9000 + "]}", b"\xff"):
            client.socket.send(text)
            assert "JSON object" in client.read()["error"]
            client.read()
        assert (client.now["phase"], client.now["step"]) == ("ready", 0)
        client.say(keys=["KeyW"])
        assert client.now["step"] == 1
        # A failed command does not end the episode either.
        assert "allowed" in client.say(do="keep")["error"]
        assert client.now["phase"] != "done"
    assert not (tmp_path / FILE).exists()


@pytest.mark.slow
def test_starts_commands_and_unfinished_episodes(robot, tmp_path):
    with Teleop(robot, wanting(tmp_path, keep_all=True)) as running, running.client() as client:
        start = client.now["poses"]
        client.say(keys=[])
        assert (client.now["phase"], client.now["step"]) == ("ready", 0)
        client.say(keys=["KeyW", "KeyI"])
        client.say(do="again")
        assert client.now["poses"] == start and (client.now["number"], client.now["step"]) == (0, 0)
        client.say(do="hands")
        assert client.now["hands"] == "left"
        client.say(do="discard")
        assert client.now["poses"] != start and (client.now["number"], client.now["hands"]) == (1, "left")
        for _ in range(2):
            client.say(keys=["KeyW"])
        client.say(do="keep")
        assert (client.now["kept"], client.now["number"], client.now["phase"]) == (1, 2, "ready")
    kept = E.load(tmp_path / FILE)
    assert kept.length.tolist() == [2] and kept.seed.tolist() == [1] and not kept.success.any()
    assert not kept.reward.any()
    assert kept.metadata["teleop"] == {"tried": 2, "won": 0, "next": 2}


@pytest.mark.slow
def test_a_full_disk_loses_no_episode(robot):
    def full(*_):
        raise OSError(28, "No space left on device")

    session = Session(robot, KEY, full, 1, keep_all=True)
    session.hear({"keys": ["KeyW"]})
    session.step()
    with pytest.raises(OSError, match="space"):
        session.hear({"do": "keep"})
    assert session.played().steps[0] == 1 and session.kept == 0
    with pytest.raises(InputError, match="allowed"):
        Session(robot, KEY, full, 1, keep_all=True).hear({"do": "keep"})


@pytest.mark.slow
def test_what_could_not_be_saved_can_be_kept_later(robot, tmp_path):
    with Teleop(robot, wanting(tmp_path, episodes=1, keep_all=True)) as running, running.client() as client:
        store, errors = running.session.store, [OSError(28, "No space left on device"), SafetensorError("I/O")]

        def full(*given):
            if errors:
                raise errors.pop()
            return store(*given)

        running.session.store = full
        client.say(keys=["KeyW"])
        client.say(do="pause")
        for said in ("I/O", "No space left"):
            assert said in client.say(do="keep")["error"] and client.now["step"] == 1
        client.say(do="keep")
        assert client.now["phase"] == "done"
        running.server.wait()
    assert E.load(tmp_path / FILE).length.tolist() == [1]


@pytest.mark.slow
def test_what_was_lost_last_counts_too(robot, tmp_path):
    with Teleop(robot, wanting(tmp_path, keep_all=True)) as running, running.client() as client:
        for last in ("keep", "discard", "finish"):
            client.say(keys=["KeyW"])
            client.say(do=last)
        assert client.now["phase"] == "done"
        running.server.wait()
    running.shelf.close(running.session.counts)
    before = (tmp_path / FILE).read_bytes()
    again = Shelf(wanting(tmp_path, resume=True, keep_all=True))
    again.close({k: v for k, v in again.counts.items() if k != "kept"})  # nothing was played
    assert (tmp_path / FILE).read_bytes() == before
    assert again.counts == {"tried": 3, "won": 0, "next": 3, "kept": 1} and again.metadata["tried"] == 3


@pytest.mark.slow
def test_http(robot, tmp_path):
    def status(path="", **headers):
        request = urllib.request.Request(running.server.address + path, headers=headers)
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with Teleop(robot, wanting(tmp_path)) as running:
        code, text = status()
        assert code == 200 and "<title>rdp teleop pickup</title>" in text
        assert f"connect-src ws://127.0.0.1:{running.server.port} ws://localhost:{running.server.port}" in text
        assert "walk ahead / back" in text
        assert status("favicon.ico")[0] == 404
        assert status(Host="evil.example")[0] == 403
        assert status("socket", Origin="http://evil.example")[0] == 403
        with pytest.raises(OSError):
            # Loopback only: another address of this machine has nothing to offer.
            socket.create_connection(("127.0.0.2", running.server.port), timeout=5).close()


def test_a_port_that_is_taken_is_refused_before_anything_starts(tmp_path, capsys):
    with listen(0) as taken:
        port = taken.getsockname()[1]
        assert main(["teleop", "--out", str(tmp_path / "out"), "--port", str(port)]) == 2
        assert f"--port: got {port}, allowed: a free port" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pace_keeps_time_and_tells_of_slowness():
    now = [0.0]
    pace = Pace(0.1, lambda: now[0])
    assert pace.left() == 0.0 and pace.factor is None
    for i in range(5):
        now[0] += pace.left() + 0.02 * (i == 2)  # once late: made up for
        pace.tick()
    assert now[0] == pytest.approx(0.4)
    assert pace.factor == pytest.approx(1.0)
    for _ in range(Pace.WINDOW):
        now[0] += 0.25
        assert pace.left() == 0.0
        pace.tick()
    assert pace.factor == pytest.approx(0.4)
    # After a slow stretch nothing is made up for.
    now[0] += 0.01
    assert pace.left() == pytest.approx(0.0, abs=0.1)
    pace.rest()
    assert pace.factor is None


@pytest.mark.slow
def test_the_command_ends_well_with_control_c(tmp_path):
    out = tmp_path / "out"
    words = [sys.executable, "-m", "train.cli", "teleop", "--out", str(out), "--keep-all", "--json"]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, Ctrl-C is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    watchdog = threading.Timer(500, process.kill)
    watchdog.start()
    try:
        for line in process.stderr:
            if "http://" in line:
                break
        client = Client(line.split()[2])
        began = time.monotonic()
        for _ in range(5):
            client.say(keys=["KeyW"])
        assert time.monotonic() - began > 0.35  # no faster than real time
        client.say(do="keep")
        client.say(keys=["KeyW"])
        process.send_signal(signal.SIGINT)
        told, complaints = process.communicate(timeout=120)
    finally:
        watchdog.cancel()
        process.kill()
    assert process.returncode == 0, complaints
    record = json.loads(told)
    assert record == json.loads((out / "summary.json").read_text())
    assert record["command"] == "teleop" and record["metrics"]["kept"] == 1 and record["env_steps"] == 6
    assert record["metrics"]["episodes"] == 2 and record["metrics"]["success_rate"] == 0.0
    assert E.load(out / FILE).length.tolist() == [5]


# --- in a browser ---------------------------------------------------------------------------------------------------------


GAMEPAD = """navigator.getGamepads = () => [null, { mapping: "standard", axes: [0, -1, 0, 0],
  buttons: Array.from({ length: 17 }, (_, i) => ({ value: Number(i === 10), pressed: i === 10 })) }]"""
"""A left stick pushed ahead and pressed."""


class Browser:
    """Chromium, told what to do over its DevTools socket."""

    def __init__(self, profile, address):
        self.process = subprocess.Popen(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-gpu",
                "--remote-debugging-port=0", f"--user-data-dir={profile}", "--window-size=1200,800", address,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.count = 0
        told = profile / "DevToolsActivePort"
        self.wait(lambda: told.exists() and "\n" in told.read_text())
        port = int(told.read_text().split()[0])
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        pages = []

        def find():
            with opener.open(f"http://127.0.0.1:{port}/json", timeout=30) as answer:
                pages[:] = [p for p in json.load(answer) if p["type"] == "page" and p["url"].startswith(address)]
            return pages

        self.wait(find)
        self.socket = connect(pages[0]["webSocketDebuggerUrl"], proxy=None, max_size=None, open_timeout=60)

    @staticmethod
    def wait(condition, seconds=60.0):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.1)

    def call(self, method, **params):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            found = json.loads(self.socket.recv(timeout=60))
            if found.get("id") == self.count:
                return found["result"]

    def run(self, script):
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def key(self, code, up=True):
        self.call("Input.dispatchKeyEvent", type="keyDown", code=code, key=code)
        if up:
            self.call("Input.dispatchKeyEvent", type="keyUp", code=code, key=code)

    def close(self):
        if hasattr(self, "socket"):
            self.socket.close()
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on PATH")
def test_the_page_drives_the_robot(robot, tmp_path):
    with Teleop(robot, wanting(tmp_path / "out", keep_all=True), period=0.1) as running:
        try:
            browser = Browser(tmp_path / "profile", running.server.address + "#gl=0")
        except (TimeoutError, OSError):
            pytest.skip("the browser does not run here")
        try:
            session = running.session
            Browser.wait(lambda: browser.run("document.documentElement.dataset.ready") == "2d")
            browser.key("KeyW", up=False)
            Browser.wait(lambda: len(session._rows) >= 3)
            assert session.inputs.forward == 1.0
            browser.call("Input.dispatchKeyEvent", type="keyUp", code="KeyW", key="w")
            Browser.wait(lambda: session.inputs.idle)
            browser.key("Space")
            Browser.wait(lambda: session.phase == "paused")
            steps = len(session._rows)
            browser.key("KeyH")
            Browser.wait(lambda: session.aim.active == "left")
            browser.run(GAMEPAD)
            Browser.wait(lambda: session.inputs.forward == 1.0 and session.aim.active == "right")
            browser.run("navigator.getGamepads = () => []")
            Browser.wait(lambda: session.inputs.idle)
            browser.key("Enter")
            Browser.wait(lambda: session.kept == 1)
            assert E.load(tmp_path / "out" / FILE).length.tolist() == [steps]
            browser.run("document.querySelector('[data-do=finish]').click()")
            running.server.wait()
            Browser.wait(lambda: browser.run("document.querySelector('.banner').textContent").startswith("done"))
        finally:
            browser.close()


# --- is it enough to play with? -------------------------------------------------------------------------------------------


class Presser:
    """Somebody with an eye for distances who lifts the box with keys alone: walk up, stand, close the palms, lift."""

    NEAR = (0.035, 0.03, 0.08)  # ahead, aside [m], turn [rad]

    def __init__(self):
        self.arrived, self.quiet, self.closing = False, 0, None

    def keys(self, hands, box, error):
        """Keys held down.

        Args:
          hands: `(2, 3)` where they have been sent, trunk frame [m].
          box: `(3,)` its middle, likewise.
          error: `(3,)` what is missing to where the box can be grasped, as `NEAR`.
        """
        held = set()

        def hold(value, tolerance, more, less):
            if abs(value) > tolerance:
                held.add(more if value > 0 else less)

        middle, gap = hands.mean(0), float(hands[0, 1] - hands[1, 1])
        if self.closing is not None:
            self.closing += 1
            hold(0.14 - gap, 0.012, "KeyG", "KeyF")
            if self.closing > 18:
                held.add("KeyO")
            return held
        share = np.abs(error) / self.NEAR
        self.arrived = bool((share < (2.5 if self.arrived else 1.0)).all())
        if not self.arrived:
            straight = abs(error[1]) < 0.06 and abs(error[2]) < 0.15
            for value, near, more, less in zip(
                error - np.array([0.0 if straight else 0.14, 0, 0]),
                self.NEAR,
                ("KeyW", "KeyA", "KeyQ"),
                ("KeyS", "KeyD", "KeyE"),
            ):
                hold(value, 0.5 * near, more, less)
            if np.linalg.norm(error[:2]) < 0.12:
                held.add("ShiftLeft")
        ahead = box[0] if np.linalg.norm(error[:2]) < 0.25 else 0.30
        hold(ahead - middle[0], 0.02, "KeyI", "KeyK")
        hold(box[2] - middle[2], 0.02, "KeyO", "KeyU")
        hold(0.42 - gap, 0.02, "KeyG", "KeyF")
        self.quiet = 0 if held else self.quiet + 1
        if self.quiet >= 8:
            self.closing = 0
        return held


@pytest.mark.slow
def test_the_box_can_be_lifted_with_keys_alone(robot):
    """One of a few starts is won by `Presser`: the mapping leaves nothing out."""
    task, env = robot.env.task, robot.env

    @jax.jit
    def look(state):
        view = env.view(state)
        pose, base = task.box_pose(view), view.measured.base
        place = task.grasp_place(pose)
        ahead = gait.turn(-base[3], place[:2] - base[:2])
        return view.local(pose[:3]), jnp.append(ahead, rotations.wrap_angle(place[2] - base[3]))

    session = Session(robot, KEY, lambda *_: 0, 1)
    outcomes = []
    while "won" not in outcomes and len(outcomes) < KEYBOARD_STARTS:
        person = Presser()
        while session.phase in ("ready", "running"):
            held = person.keys(session.aim.hands, *jax.device_get(look(session.state)))
            session.hear({"keys": sorted(held)})
            session.step()
        outcomes.append(session.outcome)
        session.hear({"do": "discard"})
    assert "won" in outcomes, outcomes
