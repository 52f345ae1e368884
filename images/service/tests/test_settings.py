"""Settings: what the environment may say."""

from __future__ import annotations

import pytest

from greenlight_service.settings import Settings, SettingsError


def test_defaults_ask_for_a_gpu() -> None:
    settings = Settings.from_environment({})
    assert settings == Settings()
    assert settings.device == "cuda"
    assert settings.drain_seconds == 5


def test_values_are_read() -> None:
    settings = Settings.from_environment(
        {
            "GREENLIGHT_DEVICE": "cpu",
            "GREENLIGHT_COLOUR": "green",
            "GREENLIGHT_VERSION": "v2.0.0-abc1234",
            "GREENLIGHT_DRAIN_SECONDS": "0.5",
            "GREENLIGHT_PORT": "9000",
            "GREENLIGHT_THREADS": "",
            "GREENLIGHT_ACCESS_LOG": "on",
        }
    )
    assert (settings.device, settings.colour, settings.version) == ("cpu", "green", "v2.0.0-abc1234")
    assert (settings.drain_seconds, settings.port, settings.threads, settings.access_log) == (0.5, 9000, 1, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GREENLIGHT_DEVICE", "gpu"),
        ("GREENLIGHT_DRAIN_SECONDS", "soon"),
        ("GREENLIGHT_DRAIN_SECONDS", "nan"),
        ("GREENLIGHT_DRAIN_SECONDS", "-1"),
        ("GREENLIGHT_PORT", "80.5"),
        ("GREENLIGHT_PORT", "70000"),
        ("GREENLIGHT_THREADS", "0"),
        ("GREENLIGHT_ACCESS_LOG", "yes"),
    ],
)
def test_refuses(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} is '{value}': use "):
        Settings.from_environment({name: value})
