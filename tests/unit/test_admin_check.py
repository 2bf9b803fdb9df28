"""`llmd check` on who may use the admin socket, and whether they can."""

from __future__ import annotations

import grp
import io
import os
import tempfile
from pathlib import Path

import pytest

from llmd.check import report
from llmd.models.demo import write_demo_models
from llmd.workers.embedded_flags import by_name
from llmd.workers.engine import Engine, EngineKind

GROUP = next((g.gr_name for g in grp.getgrall() if g.gr_gid), "")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_demo_models(folder)
    return folder


@pytest.fixture
def check(models):
    with tempfile.TemporaryDirectory(prefix="llmd-") as name:
        folder = Path(name)
        (folder / "run").mkdir(mode=0o700)

        def check(server, **env):
            file = folder / "config.toml"
            file.write_text(f'[server]\n{server}\n[llama]\nmodels_dir = "{models}"\n')
            out, err = io.StringIO(), io.StringIO()
            engine = Engine(("/e",), EngineKind.PATH, "b1", frozenset(by_name()), gpu=None)
            status = report(
                file,
                env={"HOME": "/h", "RUNTIME_DIRECTORY": str(folder / "run"), **env},
                out=out,
                err=err,
                find=lambda _binary: engine,
                memory_bytes=8 << 30,
            )
            check.out = out.getvalue()
            return status, err.getvalue()

        check.folder = folder
        yield check


def test_a_private_socket_is_nothing_to_warn_of(check):
    assert check("") == (0, "")
    socket = check.folder / "run" / "admin.sock"
    assert f"admin    {socket}: for root, llmd's own user\n" in check.out


@pytest.mark.skipif(not GROUP, reason="there is no group")
def test_it_says_who_may_use_the_socket(check):
    check(f'admin_group = "{GROUP}"\nadmin_read_all = true\nadmin_socket = "/run/x.sock"')
    told = f"/run/x.sock: for root, llmd's own user and group {GROUP}; every local user may look"
    assert told in check.out


def test_a_group_that_does_not_exist_is_a_fault_with_its_line(check):
    status, err = check('admin_group = "no-such-group"')
    assert status == 1
    assert "config.toml:2: server.admin_group: there is no group 'no-such-group'" in err


@pytest.mark.skipif(not GROUP, reason="there is no group")
def test_a_place_that_members_cannot_reach_is_warned_of_with_what_to_run(check):
    status, err = check(f'admin_group = "{GROUP}"')
    assert status == 0
    assert f"members of {GROUP} cannot reach {check.folder}/run/admin.sock" in err
    assert f"chgrp {GROUP} {check.folder} && chmod g+x {check.folder}" in err
    check.folder.chmod(0o711)
    assert check(f'admin_group = "{GROUP}"') == (0, "")  # its own directory llmd opens by itself


def test_a_place_that_anybody_may_write_to_is_a_fault(check):
    shared = check.folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    status, err = check(f'admin_socket = "{shared}/admin.sock"')
    assert status == 1
    assert f"server.admin_socket: everybody may write to {shared}" in err
    assert "config.toml:2" in err
    shared.chmod(0o1777)
    status, err = check(f'admin_socket = "{shared}/admin.sock"')
    assert status == 0
    assert "warning: server.admin_socket" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_checks_for_the_user_that_llmd_will_run_as(check):
    os.chown(check.folder / "run", 4343, 4343)
    assert check("") == (0, "")
