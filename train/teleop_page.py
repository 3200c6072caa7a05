"""The page of `rdp teleop`: the live robot, what is going on, and what the keys do."""

from __future__ import annotations

import html
from typing import Any

from train import teleop_input as T
from train.report import POLICY, STAGE_SCRIPTS, document, inline_data, scripts
from train.teleop_server import HOST, SOCKET_PATH, TAKEN


def page(task: str, scene: dict[str, Any], port: int) -> str:
    """HTML of the page.

    Args:
      task: its name.
      scene: `train.replay.Replay.to_dict` of one frame.
      port: where it is served; the page may connect to nothing else.
    """
    sockets = " ".join(f"ws://{name}:{port}" for name in (HOST, "localhost"))
    setup = {
        "scene": scene,
        "socket": SOCKET_PATH,
        "taken": TAKEN,
        "held": [key for axis in T.AXES.values() for key in (*axis.more, *axis.less)] + list(T.SLOW_KEYS),
        "presses": [{"do": name, "key": key, "button": button} for name, (_, key, button) in T.COMMANDS.items()],
    }
    rows = "".join(
        f"<tr><td>{html.escape(what)}</td><td><kbd>{html.escape(keys)}</kbd></td><td>{html.escape(pad)}</td></tr>"
        for what, keys, pad in T.legend()
    )
    buttons = "".join(
        f'<button type="button" data-do="{name}" title="{html.escape(what)}">{name}</button>'
        for name, what in [*((name, what) for name, (what, _, _) in T.COMMANDS.items()), ("finish", "end the command")]
    )
    body = f"""<main class="teleop"><header><h1>Teleoperation: {html.escape(task)}</h1>
<p id="counts">connecting</p></header>
<section class="replay live">{inline_data(setup)}
<div class="stage" tabindex="0" role="group" aria-label="live robot">
<div class="note"></div><div class="key"></div><div class="banner" role="status"></div></div>
<div class="bar">{buttons}<span class="clock"></span></div></section>
<p id="complaint" role="alert"></p>
<div class="table legend-table"><table><thead><tr><th>what</th><th>keys</th><th>gamepad</th></tr></thead>
<tbody>{rows}</tbody></table></div></main>
{scripts((*STAGE_SCRIPTS, "teleop.js"))}<script>RDP.teleop()</script>"""
    policy = f"{POLICY}; connect-src {sockets}"
    return document(f"rdp teleop {task}", [body], policy, ("report.css", "teleop.css"))
