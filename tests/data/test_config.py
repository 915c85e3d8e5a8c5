"""Settings refuse what they do not know, and keep passwords to themselves."""

from __future__ import annotations

import pytest

from data_pipeline.build import DataConfig
from data_pipeline.errors import ConfigError


def test_unknown_key_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown key 'alpaca\.fed' \(known here: .*feed"):
        DataConfig.of({"alpaca": {"fed": "sip"}}, "mine.yaml")


def test_password_in_a_refused_url_is_masked():
    with pytest.raises(ConfigError, match=r"alpaca\.url = .*//\*\*\*@127") as refused:
        DataConfig.of({"alpaca": {"url": "http://me:hunter2@127.0.0.1:8100"}})
    assert "hunter2" not in str(refused.value)
