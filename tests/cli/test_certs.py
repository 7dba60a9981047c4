"""``diskhaul certs`` and ``diskhaul node`` at the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .conftest import Lab, Ran

Diskhaul = Callable[..., Ran]


def test_certificates_are_made_shown_and_renewed(diskhaul: Diskhaul, tmp_path: Path) -> None:
    where = tmp_path / "certs"
    assert diskhaul("certs", "init", "--dir", where, "--cluster", "lab").code == 0
    made = diskhaul("--json", "certs", "node", "alpha", "beta", "--dir", where, "--days", "10", "--dns", "x.example.com")
    assert [(entry["name"], entry["role"], entry["days_left"]) for entry in made.document["certificates"]] == [
        ("alpha", "node", 9),
        ("beta", "node", 9),
    ]
    shown = diskhaul("certs", "show", "--dir", where)
    assert shown.code == 0
    assert [line.split()[:3] for line in shown.out.splitlines()] == [
        ["ca.crt", "authority", "lab"],
        ["alpha.pem", "node", "alpha"],
        ["beta.pem", "node", "beta"],
    ]
    assert "alpha.pem" in diskhaul("certs", "renew", "--dir", where).out
    assert diskhaul("certs", "renew", "--dir", where).out == "nothing is due\n"
    (where / "alpha.pem").chmod(0o644)
    shown = diskhaul("certs", "show", "--dir", where)
    assert shown.code == 2
    assert "UNUSABLE" in shown.out


def test_the_cluster_s_name_is_that_of_the_configuration(diskhaul: Diskhaul, lab: Lab, tmp_path: Path) -> None:
    made = diskhaul("--config", lab.config, "--json", "certs", "init", "--dir", tmp_path / "certs")
    assert made.document["certificates"][0]["cluster"] == "lab"


def test_what_an_action_would_not_look_at_is_refused(diskhaul: Diskhaul) -> None:
    refused = diskhaul("certs", "show", "alpha", "--role", "source", "--days", "3")
    assert refused.code == 2
    assert len(refused.problems) == 3
    assert "name at least one node" in diskhaul("certs", "node").err
    assert "'certs init' makes an authority" in diskhaul("certs", "show").err
    assert diskhaul("certs", "mend").code == 2


def test_a_node_is_served_only_by_a_transfer_that_has_a_receiver(diskhaul: Diskhaul, lab: Lab) -> None:
    refused = diskhaul("--config", lab.config, "node", "serve", "--node", "beta")
    assert refused.code == 2
    assert refused.err == "diskhaul: node beta: the configured transfer needs no receiver\n"
    assert "'delta' is unknown" in diskhaul("--config", lab.config, "node", "serve", "--node", "delta").err
