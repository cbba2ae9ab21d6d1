"""How builds of the images reach the registries that this machine reaches."""

from __future__ import annotations

from pathlib import Path

from scripts.image_settings import apt_network, pip_environment, sources


def test_settings_of_pip_that_name_files_name_them_below_the_mount(tmp_path: Path) -> None:
    listing = (
        f"global.cert='{tmp_path}/ca.crt'\n"
        f"global.find-links='{tmp_path} https://wheels.example/'\n"
        f"global.extra-index-url='file://{tmp_path}/simple'\n"
    )
    assert pip_environment(listing, {"NETRC": "/none"}) == {
        "PIP_CERT": f"/mnt{tmp_path}/ca.crt",
        "PIP_FIND_LINKS": f"/mnt{tmp_path} https://wheels.example/",
        "PIP_EXTRA_INDEX_URL": f"file:///mnt{tmp_path}/simple",
    }


def test_the_environment_prevails_over_files_as_for_pip_itself() -> None:
    listing = ":env:.index-url='https://b.example/'\nglobal.index-url='https://a.example/'\n"
    found = pip_environment(listing, {"NETRC": "/none"})
    assert found == {"PIP_INDEX_URL": "https://b.example/"}


def test_settings_of_pip_about_other_things_stay_here() -> None:
    listing = "global.constraint='/c.txt'\ninstall.user='true'\n"
    assert pip_environment(listing, {"NETRC": "/none"}) == {}


def test_certificates_of_the_environment_count_where_pip_has_none_of_its_own() -> None:
    ours = {"SSL_CERT_FILE": "/nowhere/ca.crt", "NETRC": "/none"}
    assert pip_environment("", ours) == {"PIP_CERT": "/mnt/nowhere/ca.crt"}


def test_mirrors_of_this_machine_serve_the_other_release_too() -> None:
    targets = (
        "Debian|Debian|http://mirror.example/debian/\n"
        "Debian|Debian-Security|http://mirror.example/security/\n"
        "Other|Other|http://other.example/\n"
    )
    assert sources(targets, release="r", keyring="/k") == (
        "deb [signed-by=/k] http://mirror.example/debian r main\n"
        "deb [signed-by=/k] http://mirror.example/debian r-updates main\n"
        "deb [signed-by=/k] http://mirror.example/security r-security main\n"
    )


def test_of_apt_only_what_reaches_mirrors_is_taken() -> None:
    dump = 'APT "";\nAcquire::http::Proxy "http://p.example";\nDpkg::Options "";\n'
    assert list(apt_network(dump)) == [
        'Acquire::Retries "3";',
        'Acquire::http::Proxy "http://p.example";',
    ]
