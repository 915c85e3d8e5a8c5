"""Any policy over any span, to ledgers, a table and a page; it judges nothing and opens no holdout record.

<out>/ledgers/<name>/    what each account did
<out>/report.html        the same for people
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import numpy as np

from data_pipeline.build import build
from data_pipeline.clearance import kept_clearance
from data_pipeline.config import read_yaml, set_path, with_overrides
from data_pipeline.errors import ConfigError, FoldError
from data_pipeline.folds import Span
from data_pipeline.panel import Panel, open_panel
from envs.backtest import Ledger, backtest
from envs.bundle import MANIFEST, Bundle, read_bundle
from envs.contract import Policy
from rl.config import RunConfig
from rl.judging.baselines import BASELINES
from rl.judging.report import write_report


def policy_named(name: str) -> tuple[Policy, Bundle | None]:
    """Returns the baseline of that name, or the policy of the bundle in that folder, with the bundle.

    Raises:
        ConfigError: There is neither.
        BundleError: The bundle does not verify.
    """
    by_name = {baseline.name: baseline for baseline in BASELINES}
    if name in by_name:
        return by_name[name], None
    if (Path(name) / MANIFEST).is_file():
        bundle = read_bundle(Path(name))
        return bundle.policy, bundle
    raise ConfigError(f"policy {name!r}: give a bundle's folder or one of {', '.join(by_name)}")


def settings_for(bundle: Bundle | None, path: Path | None, assignments: Iterable[str]) -> RunConfig:
    """Returns the settings of a file with `assignments` on top; a bundle's own fill in what they leave open.

    Those are its features, symbols, exchange, limits and costs: it is then run as it was judged.

    Raises:
        ConfigError: Naming file, dotted path and remedy.
    """
    tree = read_yaml(path) if path else {}
    if bundle is not None:
        manifest = bundle.manifest
        set_path(tree, "data.features", [feature.name for feature in manifest.features])
        set_path(tree, "data.symbols", list(manifest.symbols))
        set_path(tree, "data.exchange", manifest.exchange)
        for part in ("limits", "costs"):
            given = tree.get("env", {}).get(part, {})
            set_path(tree, f"env.{part}", {**getattr(manifest, part).tree(), **given})
    return RunConfig.of(with_overrides(tree, assignments), str(path or "settings"))


def run(
    policy: Policy, config: RunConfig, out: Path, start: date | None = None, end: date | None = None, seed: int = 0
) -> list[Ledger]:
    """Returns the ledger of `policy` and then those of the baselines, over the same sessions, saved in `out`.

    Args:
        policy: Decides.
        config: Data, limits, costs and initial cash.
        out: Folder of ledgers and report.
        start: First session that fills; None: the first at which the policy can have decided.
        end: Last session; None: the panel's last.
        seed: Of random slippage.

    Raises:
        FoldError: The span is empty or leaves no room for the policy's window.
    """
    folder = build(config.data)
    panel = open_panel(folder)
    others = tuple(baseline for baseline in BASELINES if baseline.name != policy.name)
    span = _span(panel, max(each.window for each in (policy, *others)), start, end)
    env = config.env
    ledgers = [
        backtest(each, panel, span, env.limits, env.costs, env.initial_cash_usd, seed) for each in (policy, *others)
    ]
    for ledger in ledgers:
        ledger.save(out / "ledgers" / ledger.name)
    context = {
        "symbols": ", ".join(panel.symbols),
        "decision and fill": "decided at the close of a session, filled at the open of the next",
        "costs": json.dumps(env.costs.tree()),
        "limits": json.dumps(env.limits.tree()),
        "bars": ", ".join(f"{key} {value}" for key, value in panel.source.items()),
    }
    title = f"Backtest of {policy.name} on {', '.join(panel.symbols)}"
    known = kept_clearance(folder, config.data)
    write_report(out / "report.html", title=title, ledgers=ledgers, verdict=None, context=context, clearance=known)
    return ledgers


def _span(panel: Panel, window: int, start: date | None, end: date | None) -> Span:
    earliest = int(np.argmax(panel.ready.any(axis=1))) + window
    first = earliest if start is None else int(np.searchsorted(panel.sessions, np.datetime64(start)))
    last = len(panel.sessions) if end is None else int(np.searchsorted(panel.sessions, np.datetime64(end), "right"))
    if not earliest <= first < last:
        known = f"{panel.sessions[min(earliest, len(panel.sessions) - 1)]} .. {panel.sessions[-1]}"
        raise FoldError(f"--start {start} --end {end}: no span of sessions; choose within {known}")
    return Span(first, last)
