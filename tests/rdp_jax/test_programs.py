"""Where compiled programs are kept."""

from rdp_jax import programs


def test_the_environment_decides_first():
    for given in ("/somewhere", ""):
        environ = {programs.DIRECTORY: given, "HOME": "/home/me"}
        programs.keep_programs(environ)
        assert environ[programs.DIRECTORY] == given
    homeless: dict[str, str] = {}
    programs.keep_programs(homeless)
    assert homeless == {}


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
