"""Settings refuse what they do not know, and keep passwords to themselves."""

from __future__ import annotations

import pytest

from data_pipeline.build import DataConfig, chosen_snapshot
from data_pipeline.errors import ConfigError
from data_pipeline.store import Store


def test_unknown_key_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown key 'alpaca\.fed' \(known here: .*feed"):
        DataConfig.of({"alpaca": {"fed": "sip"}}, "mine.yaml")


def test_password_in_a_refused_url_is_masked():
    with pytest.raises(ConfigError, match=r"alpaca\.url = .*//\*\*\*@127") as refused:
        DataConfig.of({"alpaca": {"url": "http://me:hunter2@127.0.0.1:8100"}})
    assert "hunter2" not in str(refused.value)


def test_snapshot_by_id_and_by_time_at_once_is_refused(tmp_path):
    config = DataConfig.of({"snapshot": "3f2a9c51d0e8b7a6", "as_of": "2026-11-20T21:30:00Z"})
    with pytest.raises(ConfigError, match="set one of them"):
        chosen_snapshot(config, Store(tmp_path))
