"""Where compiled programs are kept."""

import os
import subprocess
import sys

import jax

from rdp_jax import programs


def test_the_environment_decides_first():
    for given in ("/somewhere", ""):
        environ = {programs.DIRECTORY: given, "HOME": "/home/me"}
        programs.keep_programs(environ)
        assert environ[programs.DIRECTORY] == given
    homeless: dict[str, str] = {}
    programs.keep_programs(homeless)
    assert homeless == {}


def test_products_are_exact_unless_the_environment_says_otherwise():
    before, told = jax.config.jax_default_matmul_precision, {}
    try:
        programs.exact_products(told)
        assert jax.config.jax_default_matmul_precision == "highest"
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert told == {programs.PRECISION: "highest"}
    told[programs.PRECISION] = "bfloat16"
    programs.exact_products(told)
    assert told[programs.PRECISION] == "bfloat16"
    words = [sys.executable, "-c", "import jax; print(jax.config.jax_default_matmul_precision)"]
    environ = {**os.environ, programs.PRECISION: "highest"}
    assert subprocess.run(words, env=environ, capture_output=True, text=True).stdout.strip() == "highest"


def test_a_directory_per_processor(monkeypatch, tmp_path):
    environ = {"HOME": "/home/me"}
    programs.keep_programs(environ)
    assert environ[programs.DIRECTORY] == f"/home/me/.cache/rdp_jax/{programs.processor()}"
    other = {"HOME": "/home/me", "XDG_CACHE_HOME": "/caches"}
    programs.keep_programs(other)
    assert other[programs.DIRECTORY].startswith("/caches/rdp_jax/")
    here = programs.processor()
    (tmp_path / "cpuinfo").write_text("model name : Another\nflags : fpu\n")
    monkeypatch.setattr(programs, "CPU_INFO", tmp_path / "cpuinfo")
    assert programs.processor() != here
