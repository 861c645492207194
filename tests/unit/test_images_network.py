"""Network settings that a build takes over from the machine that it is started on."""

from __future__ import annotations

from pathlib import Path

from images.build import BuildOptions, with_network
from images.network import Network, of_this_machine


def test_an_ordinary_machine_has_no_settings() -> None:
    assert of_this_machine({}, ()) == Network()


def test_the_first_authorities_that_are_set_and_there_count(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("x")
    assert of_this_machine({"SSL_CERT_FILE": str(bundle)}, ()).ca_bundle == bundle
    assert of_this_machine({"PIP_CERT": str(bundle), "SSL_CERT_FILE": "/other"}, ()).ca_bundle == bundle
    assert of_this_machine({"PIP_CERT": str(tmp_path / "gone")}, ()).ca_bundle is None


def test_pips_own_settings_are_taken_where_a_container_can_reach_them(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex_url = https://index.example/simple\nfind-links = /srv/wheels\n"
        "extra-index-url = file:///opt/index\n    http://localhost:3141/root\n    https://more.example/simple\n"
        "trusted-host = index.example\n[install]\nindex-url = https://not-global.example/\n"
    )
    found = of_this_machine({}, (str(config),))
    assert found.index_url == "https://index.example/simple"
    assert found.extra_index_urls == ("https://more.example/simple",)
    assert found.trusted_hosts == ("index.example",)


def test_variables_win_over_files(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://file.example/simple\n")
    variables = {"PIP_INDEX_URL": "https://variable.example/simple"}
    assert of_this_machine(variables, (str(config),)).index_url == "https://variable.example/simple"
    assert of_this_machine({"PIP_CONFIG_FILE": "/dev/null"}, (str(config),)).index_url == ""


def test_a_broken_pip_config_does_not_stop_a_build(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("index-url = no section\n")
    assert of_this_machine({}, (str(config),)) == Network()


def test_flags_replace_only_what_they_name() -> None:
    options = BuildOptions(network=Network(index_url="https://a.example", apt_mirror="http://m.example/debian"))
    changed = with_network(options, index_url="https://b.example", apt_mirror=None, keep=True)
    assert changed.network == Network(index_url="https://b.example", apt_mirror="http://m.example/debian", keep=True)
