"""Write the measured numbers into README.md, the model cards and pages of docs/: `python docs/_scripts/update_numbers.py`.

Reads the JSON that `lssvwm-gym evaluate --out`, `python -m experiments.more_tests --out` and `python -m experiments.benchmark --out`
left in docs/scores/, and replaces what stands between `<!-- numbers:NAME -->` and `<!-- end -->`. With --check it changes nothing and
fails where a file is stale.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from experiments.benchmark.report import TABLES
from experiments.trials import correlation_of_returns

ROOT = Path(__file__).parent.parent.parent
SCORES = ROOT / "docs" / "scores"
CARDS = ROOT / "lssvwm_gym" / "weights"
TARGETS = (
    *(
        ROOT / name
        for name in ("README.md", "docs/results.md", "docs/minecraft.md", "docs/agents.md", "docs/performance.md", "docs/small_world.md")
    ),
    *(CARDS / world / "README.md" for world in ("memory_maze", "minecraft")),
)


def maze_columns(back: int, past: int, ahead: int, *falls: tuple[str, str]) -> dict[str, tuple[str, str]]:
    """Of a table of variants: title to test and score. `falls`: titles and names of what the revisit curve falls by."""
    return {
        "next frame PSNR": ("next_frame", "true motion PSNR"),
        f"revisiting {back} frames PSNR": ("retrieval", f"revisiting {back} frames, own memory: PSNR"),
        "SSIM": ("retrieval", f"revisiting {back} frames, own memory: SSIM"),
        **{title: ("retrieval", f"revisiting {back} frames, own memory: {name}") for title, name in falls},
        f"{past} context + {ahead} generated PSNR": ("reasoning", f"{past} context + {ahead} generated frames, true poses: PSNR"),
        "SSIM ": ("reasoning", f"{past} context + {ahead} generated frames, true poses: SSIM"),
    }


MAZE_COLUMNS = maze_columns(400, 576, 224, ("fall from 50 to 796 frames", "fall from 50 to 800 frames since seen (dB)"))
SHORT_COLUMNS = maze_columns(40, 50, 30)
REVISITING, REASONING = "revisiting 400 frames", "576 context + 224 generated frames"
BLOCKS, REWARDS = "100 context + 50 generated frames", "600 context frames, 40 frames ahead: share of"
BLOCK_COLUMNS = {
    "next frame PSNR": ("next_frame", "true motion PSNR"),
    "100 context + 50 generated, true poses PSNR": ("reasoning", f"{BLOCKS}, true poses: PSNR"),
    "SSIM": ("reasoning", f"{BLOCKS}, true poses: SSIM"),
    "estimated poses PSNR": ("reasoning", f"{BLOCKS}, estimated poses: PSNR"),
    "SSIM ": ("reasoning", f"{BLOCKS}, estimated poses: SSIM"),
    "last frame repeated PSNR": ("reasoning", f"{BLOCKS}, last frame repeated: PSNR"),
}
HEADLINES = (  # what a table of one screen says of the maze: test, score, what it is called there
    ("next_frame", "estimated motion PSNR", "next frame"),
    ("next_frame", "last frame repeated PSNR", "baseline: last frame repeated"),
    ("retrieval", f"{REVISITING}, own memory: PSNR", "revisiting 400 frames, true poses"),
    ("retrieval", f"{REVISITING}, own memory: SSIM", "SSIM of the row above"),
    ("retrieval", f"{REVISITING}, estimated poses: PSNR", "revisiting 400 frames, estimated poses"),
    ("retrieval", f"{REVISITING}, cost of stranger's memory (dB)", "loss with the memory of another episode (dB)"),
    ("retrieval", f"{REVISITING}, cost of shuffled poses (dB)", "loss with shuffled query poses (dB)"),
    (
        "retrieval",
        f"{REVISITING}, own memory: fall from 50 to 800 frames since seen (dB)",
        "loss from 50 to 800 frames since last seen (dB)",
    ),
    ("reasoning", f"{REASONING}, true poses: PSNR", "576 context + 224 generated frames, true poses"),
    ("reasoning", f"{REASONING}, true poses: PSNR of frames seen before", "views seen in the context"),
    ("reasoning", f"{REASONING}, true poses: PSNR of frames new", "views not seen in the context"),
    ("reasoning", f"{REASONING}, estimated poses: PSNR", "576 context + 224 generated frames, estimated poses"),
    ("identity", "dream: share of patches that keep their colour", "patches that keep their colour"),
    ("reward", "F1", "F1 of predicted rewards, on real frames"),
    (
        "reward_ahead",
        f"{REWARDS} rewards dreamed",
        "recall of rewards 40 frames ahead, 600 context frames",
    ),
    ("reward_ahead", "40 frames ahead: share of rewards dreamed", "recall of rewards 40 frames ahead, 100 context frames"),
    ("reconstruction", "autoencoder PSNR", "upper bound: autoencoder reconstruction"),
)
BARS = (  # of what is carried: test, score, what it should reach
    ("crafting", "real frames: possible crafts right", 0.9),
    ("crafting", "real frames: impossible crafts without effect", 0.95),
    ("crafting", "dreamed frames: possible crafts right", 0.9),
    ("crafting", "dreamed frames: possible crafts right, by the dream's own inventory", 0.9),
    ("crafting", "dreamed frames: impossible crafts without effect", 0.95),
    ("crafting", "dreamed frames: impossible crafts without effect, by its own inventory", 0.95),
    ("crafting", "crafts tried: possible ones right", 0.9),
    ("crafting", "crafts tried: impossible ones without effect", 0.95),
    ("crafting", "crafts tried with any bag: possible ones right", 0.98),
    ("crafting", "crafts tried with any bag: impossible ones without effect", 0.99),
    ("inventory", "after 300 frames: inventory unchanged", 0.95),
    ("inventory", "any bag, after 300 frames: inventory unchanged", 0.99),
    ("milestones", "wooden pickaxe: rewards given once each and in order", 1.0),
    ("milestones", "stone pickaxe: rewards given once each and in order", 1.0),
    ("milestones", "all crafts from logs and cobblestones: rewards given once each and in order", 1.0),
    ("dug_away", "gone after 50 frames and more", 0.95),
)


PROFILES = {"fast": "memory_maze", "balanced": "memory_maze_reasoning_4", "quality": "memory_maze_reasoning_8"}
BENCH = {  # part to file
    "simulators": "bench_simulators",
    "cache": "bench_cache",
    "training": "bench_training",
    "peak": "bench_arithmetic",
    "scan": "bench_arithmetic",
}
PRECISIONS = {  # how steps were computed, and where that was measured
    "as it comes": "bench_steps",
    '`dtype="bfloat16"`': "bench_bfloat16",
    '`backend="compiled"`': "bench_compiled_float32",
    "both": "bench_compiled",
}
IMAGINED = {  # file to what it measured: title, score of dreams, the same of real frames or the floor
    "imagination": (
        (
            "forward steps blocked",
            "imagination",
            "dreamed, all 100 frames: share of forward steps blocked",
            "real, all 100 frames: share of forward steps blocked",
        ),
        *(
            (f"{title} in {steps} steps", "imagination", f"dreamed: {score}", f"real: {score}")
            for title, steps, score in (
                ("distance covered, world units,", "100", "distance covered in 100 steps (world units)"),
                ("cells visited", "100", "cells visited in 100 steps"),
                ("rewards", "1,000", "rewards in 1,000 steps"),
                ("rewards of players that run against walls", "1,000", "rewards in 1,000 steps of players that run against walls"),
            )
        ),
        *(
            (f"{measure}, {name}, {window}", "imagination", f"{name}, {window}: {measure}, dreamed", f"{name}, {window}: {measure}, floor")
            for name, measures in (
                ("latents", ("Fréchet distance", "kernel distance", "precision", "recall")),
                ("stacks of 4", ("Fréchet distance", "kernel distance", "precision", "recall")),
                ("single frames", ("AUC",)),
                ("stacks of 8", ("AUC",)),
            )
            for measure in measures
            for window in ("frames 1 to 50", "frames 51 to 100", "all 100 frames")
        ),
        ("next frame on pixels that change, PSNR", "imagination", "recorded action, pixels that change: PSNR", ""),
        ("loss with another action (dB)", "imagination", "cost of another action, pixels that change (dB)", ""),
        *(
            (f"own frames seen again after {title}, PSNR", "stability", f"{score}: PSNR", "autoencoder: PSNR")
            for title, score in (
                ("no steps elsewhere", "there and back, 0 steps elsewhere"),
                ("50 steps elsewhere", "there and back, 50 steps elsewhere"),
                ("200 steps elsewhere", "there and back, 200 steps elsewhere"),
                ("a full turn", "a full turn"),
                ("a full turn, in another order", "a full turn, views in another order"),
            )
        ),
    ),
    "known_places": (
        (
            "known places: forward steps blocked",
            "known_places",
            "dreamed, all 60 frames: share of forward steps blocked",
            "real, all 60 frames: share of forward steps blocked",
        ),
        ("known places: rewards in 1,000 steps", "known_places", "dreamed: rewards in 1,000 steps", "real: rewards in 1,000 steps"),
        *(
            (
                f"known places, {kind}, frames {span}, PSNR",
                "known_places",
                f"{kind}, frames {span}: PSNR",
                f"autoencoder, frames {span}: PSNR",
            )
            for kind in ("one sample", "mean of 8 samples")
            for span in ("1 to 10", "11 to 30", "31 to 60")
        ),
    ),
}
LEAST_POLICIES = 5  # whose order says something
SHIPPED = "agents/policies/memory_maze"
AGENTS = {  # policies that were tried: where they learned, steps there, and what that took
    "random": ("none: uniform random actions", "", ""),
    "wander": ("none: forward with random turns", "", ""),
    "explorer": ("none: scripted expert with the map", "", ""),
    f"{SHIPPED}_imitated.safetensors@0.6": ("behaviour cloning, random action with probability 0.6", "", ""),
    f"{SHIPPED}_imitated.safetensors@0.3": ("behaviour cloning, random action with probability 0.3", "", ""),
    f"{SHIPPED}_imitated.safetensors": ("behaviour cloning of recorded episodes", "57,090 frames", "11 minutes"),
    f"{SHIPPED}.safetensors": ("PPO in dreams with short contexts, from scratch", "4,784,128", "169 s of an H200"),
    f"{SHIPPED}_dreamed_48000.safetensors": ("PPO in dreams with long contexts, from behaviour cloning", "48,000", "14 minutes"),
    f"{SHIPPED}_dreamed.safetensors": ("PPO in dreams with long contexts, from behaviour cloning, longer", "192,000", "36 minutes"),
    f"{SHIPPED}_real_48000.safetensors": ("PPO in the real maze, from behaviour cloning", "48,000", "53 minutes"),
    "runs/policies/pixels_imitated.safetensors": (
        "behaviour cloning of recorded episodes, from pixels",
        "57,090 frames",
        "3 minutes, encoding apart",
    ),
    f"{SHIPPED}_pixels.safetensors": ("PPO in dreams with long contexts, from behaviour cloning, from pixels", "48,000", "9 minutes"),
    "runs/policies/pixels_seed_2.safetensors": ("the same from pixels, another seed", "48,000", "7 minutes"),
    "follower": ("none: the shortest way on the map", "", ""),
    f"{SHIPPED}_map_from_nothing.safetensors": ("PPO in dreams, from nothing; ships", "489,472", "20 minutes"),
    "runs/from_nothing/policy-00000122880.safetensors": ("PPO in dreams, from nothing, earlier", "122,880", "6.6 minutes"),
    "runs/from_nothing/policy-00000368640.safetensors": ("PPO in dreams, from nothing, earlier", "368,640", "15.5 minutes"),
    "runs/from_nothing_real/policy-00000025600.safetensors": (
        "PPO in the real maze, from nothing, earlier",
        "25,600 real ones",
        "7.6 minutes",
    ),
    "runs/from_nothing_real/policy.safetensors": ("PPO in the real maze, from nothing", "65,536 real ones", "20 minutes"),
    f"{SHIPPED}_map_imitated.safetensors": ("imitation of the seeker (DAgger)", "54,000 real ones", "25 minutes"),
    f"{SHIPPED}_map.safetensors": ("PPO in dreams, from that imitation; ships", "403,456", "16 minutes"),
    "runs/imitated_real/policy.safetensors": ("PPO in the real maze, from that imitation", "45,568 real ones", "16 minutes"),
    "runs/known_mazes/policy.safetensors": ("PPO in dreams of known mazes, from that imitation", "219,136", "16 minutes"),
    "runs/known_mazes_from_nothing/policy.safetensors": ("PPO in dreams of known mazes, from nothing", "309,248", "20 minutes"),
    "runs/policies/recurrent.safetensors": ("recurrent PPO in dreams with long contexts, from scratch", "50,000", "8 minutes"),
}


def main() -> None:
    tables = {name: quality(_read(f"{file}.json")) for name, file in (("quality", "memory_maze"), ("balanced", "memory_maze_balanced"))}
    tables |= {
        "speed": speed(_read("bench_steps.json"), _read("bench_simulators.json"), PROFILES),
        "profiles": by_profile({profile: _read(f"{file}.json") for profile, file in PROFILES.items()}),
        "comparison": comparison("comparison", MAZE_COLUMNS),
    }
    tables |= {f"bench {part}": bench(part, _read(f"{file}.json")) for part, file in BENCH.items()}
    tables |= {"precision": precision({how: _read(f"{file}.json") for how, file in PRECISIONS.items()})}
    tables |= {"bench simulators compiled": bench("simulators", _read("bench_simulators_compiled.json"))}
    minecraft, dug_away = _read("minecraft.json"), _read("dug_away.json")
    tables |= {"minecraft": quality(minecraft), "minecraft bars": bars(minecraft["scores"] | dug_away["scores"])}
    tables |= {"headline": headline(_read("memory_maze.json")), "gpu": gpu(_read("memory_maze_gpu.json"))}
    tables["imagination test"] = imagined("test", (1, 4, 8))
    tables["imagination long"] = lasting({steps: _read(f"imagination_long_{steps}.json") for steps in (1, 4)})
    tables["imagination minecraft"] = imagined("minecraft", (1, 4), ("imagination",))
    tables["imagination headline"] = imagination_headline(tables["imagination test"])
    tables["agents"] = agents(
        _read(f"{name}.json")
        for name in ("transfer_short_contexts", "transfer", "transfer_real", "transfer_pixels", "transfer_pixels_seed_2")
    )
    tables["agents walked"] = agents([_read("transfer_walked.json")])
    tables["agents map"] = agents(map(_read, ("transfer_map_made_up.json", "transfer_map_real.json")))
    tables["planner"] = planner(_read("plan.json"))
    tables["long comparison"] = comparison("long_comparison", MAZE_COLUMNS)
    tables["short comparison"] = comparison("short_comparison", SHORT_COLUMNS)
    tables["minecraft comparison"] = comparison("minecraft_comparison", BLOCK_COLUMNS)
    tables["small world"] = small_world()
    tables["live"] = live(_read("live.json"))
    stale = [path for path in TARGETS if _updated(path, tables) != path.read_text()]
    if "--check" in sys.argv and stale:
        sys.exit(f"stale: {', '.join(map(str, stale))}; run python docs/_scripts/update_numbers.py")
    for path in stale:
        path.write_text(_updated(path, tables))


def quality(report: dict[str, Any]) -> str:
    """One row a score: mean, standard error, clips. The JSON has more."""
    lines = ["| test | score | value | clips |", "|---|---|---|---|"]
    for test, scores in report["scores"].items():
        lines += [f"| {test.replace('_', ' ')} | {name.replace(':', '')} | {_shown(v)} |" for name, v in scores.items() if _wanted(name)]
    return "\n".join(lines)


def headline(report: dict[str, Any]) -> str:
    """What matters most, in plain words; decibels of PSNR where nothing else is said."""
    lines = ["| test | value | clips |", "|---|---|---|"]
    return "\n".join(lines + [f"| {called} | {_shown(report['scores'][test][name])} |" for test, name, called in HEADLINES])


def gpu(report: dict[str, Any]) -> str:
    """One row a profile and number of environments; what `experiments/gpu.py` measured."""
    lines = ["| profile | envs | eager, total steps/s | CUDA graph, total steps/s |", "|---|---|---|---|"]
    lines += [f"| {s['profile']} | {s['envs']:,} | {s['eager']:,.0f} | {s['graph']:,.0f} |" for s in report["speeds"]]
    off = report["parity"]["frames_off_by_step"]
    apart = f"after 40 steps frames differ from the CPU's by {off['40']:.2f} of 255 on average, rewards not at all"
    return "\n".join(lines) + f"\n\nOn one {report['device']}, torch {report['torch']}, {report['date']}; {apart}."


def agents(reports: Iterable[dict[str, Any]]) -> str:
    """One row a policy, the best in the real world last: what it learned from, and its returns in dreams and there, of the last report
    that tried it there."""
    tried: dict[str, dict[str, Any]] = {}
    for one in (one for report in reports for one in report["policies"] if one["policy"] in AGENTS):
        before = tried.get(one["policy"], one)
        tried[one["policy"]] = {where: (one if one[where]["returns"] else before)[where] for where in ("dream", "real")}
    lines = ["| how the policy was trained | steps | time | return in dreams | return in the real maze |", "|---|---|---|---|---|"]
    for policy, one in sorted(tried.items(), key=lambda item: item[1]["real"]["mean"]):
        both = (one["dream"], one["real"])
        returns = [f"{there['mean']:.2f} ± {there['standard_error']:.2f}" if there["returns"] else "" for there in both]
        lines.append("| " + " | ".join([*AGENTS[policy], *returns]) + " |")
    found = correlation_of_returns([(one["dream"]["returns"], one["real"]["returns"]) for one in tried.values()])
    if found["rank"] is None or found["policies"] < LEAST_POLICIES:
        return "\n".join(lines)
    low, high = found["rank_interval"]
    span = f"{low:.2f} to {high:.2f} in nine of ten redrawings of the episodes"
    said = f"of ranks {found['rank']:.2f} ({span}), the linear one {found['linear']:.2f}"
    return "\n".join(
        [*lines, "", f"Correlation of the returns in dreams and in the real maze over the {found['policies']} policies: {said}."]
    )


def planner(report: dict[str, Any]) -> str:
    """One row a player; what `experiments/mpc.py` measured."""
    settings = report["settings"]
    lines = [f"| player | return of {settings['steps']} steps in {settings['episodes']} real mazes |", "|---|---|"]
    for player, numbers in report["players"].items():
        lines.append(f"| {AGENTS[player][0] if player in AGENTS else player} | {numbers['mean']:.2f} ± {numbers['standard_error']:.2f} |")
    took = f"{report['decisions']} decisions, {report['seconds_mean']:.1f} s each, one in ten more than {report['seconds_90']:.1f} s"
    return "\n".join(lines) + f"\n\n{took}."


def bars(scores: dict[str, Any]) -> str:
    """One row a share that has a bar to reach."""
    lines = ["| test | share | bar | measured | cases | reached |", "|---|---|---|---|---|---|"]
    for test, name, bar in BARS:
        value = scores[test][name]
        reached = "yes" if value["mean"] >= bar else "no"
        lines.append(f"| {test} | {name.replace(':', '')} | {bar} | {_mean(value)} | {value['clips']} | {reached} |")
    return "\n".join(lines)


def comparison(folder: str, columns: dict[str, tuple[str, str]]) -> str:
    """One row a variant, best at its second column first."""
    reports = [_read(f"{folder}/{path.name}") for path in (SCORES / folder).glob("*.json")]
    test, name = list(columns.values())[1]
    reports.sort(key=lambda report: -report["scores"][test][name]["mean"])
    lines = [f"| variant | what it is | weights | frames | minutes | {' | '.join(columns)} |", "|" + "---|" * (5 + len(columns))]
    for report in reports:
        training = report["training"]
        scores = [_mean(report["scores"][test][name]) for test, name in columns.values()]
        size, minutes = f"{training['parameters'] / 1e6:.2f} M", f"{training['seconds'] / 60:.1f}"
        seen = f"{training['frames'] / 1000:,.0f} k"
        lines.append(f"| {training['variant']} | {training['about']} | {size} | {seen} | {minutes} | {' | '.join(scores)} |")
    return "\n".join(lines)


def small_world() -> str:
    """One row a variant of examples/small_world.py, mean and standard error over seeds; the best after 32 frames and more first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((SCORES / "small_world").glob("*.json")):
        report = _read(f"small_world/{path.name}")
        found.setdefault(report["variant"], []).append(report)
    bins = ["4", "16", "32", "64", "128", "256"]
    titles = [f"{low} to {2 * int(low) - 1}" for low in bins[:-1]] + ["256 to 511"]
    lines = [f"| variant | weights of the layers | seeds | processor time | {' | '.join(titles)} frames |", "|" + "---|" * (4 + len(bins))]
    for variant, runs in sorted(found.items(), key=lambda item: -sum(fmean(run["recall"][low] for run in item[1]) for low in bins[2:])):
        shares = [[100 * run["recall"][low] for run in runs] for low in bins]
        cells = [f"{fmean(share):.0f}" + (f" ± {stdev(share) / len(share) ** 0.5:.0f}" if len(share) > 1 else "") for share in shares]
        took = f"{fmean(run['seconds'] for run in runs):.0f} s"
        lines.append(f"| {variant} | {runs[0]['weights']:,} | {len(runs)} | {took} | {' | '.join(cells)} |")
    return "\n".join(lines)


def speed(report: dict[str, Any], simulators: dict[str, Any], profiles: dict[str, str]) -> str:
    """One row a profile and number of environments, with what a dream of that profile is worth."""
    lines = [
        "| profile | denoising passes | envs | total steps/s | ms a step (median, 10 %, 90 %) | 576 context + 224 generated, PSNR |",
        "|---|---|---|---|---|---|",
    ]
    for s in report["speed"]:
        worth = _mean(_read(f"{profiles[s['profile']]}.json")["scores"]["reasoning"][f"{REASONING}, true poses: PSNR"])
        times = f"{s['ms']:.1f} ({s['ms_p10']:.1f}, {s['ms_p90']:.1f})"
        lines.append(f"| {s['profile']} | {s['passes']} | {s['envs']} | {s['steps_per_second']:.0f} | {times} | {worth} |")
    real = [
        f"{r['steps_per_second']:.0f} in {r['processes']} process{'es' * (r['processes'] > 1)}"
        for r in simulators["simulators"]
        if "envs" not in r and r["observation"] == "all"
    ]
    ages = ", ".join(f"{age['ms']:.1f} ms at step {age['age']:,}" for age in report["ages"])
    return (
        "\n".join(lines)
        + f"\n\nThe real maze makes {', '.join(real)} a second here. A step of one environment costs {ages}. {_machine(report)}"
    )


def by_profile(reports: dict[str, dict[str, Any]]) -> str:
    """One row a score of frames generated after a long context, one column a profile."""
    lines = [f"| | {' | '.join(f'`{profile}`' for profile in reports)} |", "|---|" + "---|" * len(reports)]
    for title, name in (
        ("true poses", "true poses: PSNR"),
        ("of these, views seen in the context", "true poses: PSNR of frames seen before"),
        ("of these, views not seen in the context", "true poses: PSNR of frames new"),
    ):
        scores = [_mean(report["scores"]["reasoning"][f"{REASONING}, {name}"]) for report in reports.values()]
        lines.append(f"| {title} | {' | '.join(scores)} |")
    return "\n".join(lines)


IMAGINATION_HEADLINES = {  # titles of rows of `imagined`, and what they are called
    "forward steps blocked": "forward steps that a wall blocks, made-up mazes",
    "Fréchet distance, latents, all 100 frames": "Fréchet distance of latents, made-up mazes",
    "AUC, single frames, all 100 frames": "AUC of a network that tells dreamed frames from real ones",
    "own frames seen again after a full turn, PSNR": "made-up frames seen again after a full turn, PSNR",
    "known places: forward steps blocked": "forward steps that a wall blocks, along explorers in known mazes",
}


def imagination_headline(table: str) -> str:
    """The rows of `imagined` that matter most."""
    head, line, *rows = table.splitlines()
    found = {row.split(" | ")[0].removeprefix("| "): row for row in rows}
    return "\n".join([head, line, *(f"| {called} | {found[title].split(' | ', 1)[1]}" for title, called in IMAGINATION_HEADLINES.items())])


def imagined(split: str, steps: tuple[int, ...], files: tuple[str, ...] = tuple(IMAGINED)) -> str:
    """One row a measure of dreams, by number of denoising steps, beside real frames, the floor, or the autoencoder."""
    columns = " | ".join(f"{number} step" if number == 1 else f"{number} steps" for number in steps)
    lines = [f"| | real, or floor | {columns} | episodes |", "|---|---|" + "---|" * (len(steps) + 1)]
    for file in files:
        reports = [_read(f"{file}_{split}_{number}.json")["scores"] for number in steps]
        for title, test, dreamed, real in (row for row in IMAGINED[file] if row[1] in reports[0]):  # of the tests that were made
            found = [report[test].get(dreamed) for report in reports]
            beside = _mean(reports[0][test][real]) if real and any(found) else ""
            episodes = [value["clips"] for value in found if value]
            lines += [f"| {title} | {beside} | {' | '.join(_mean(v) if v else '' for v in found)} | {one} |" for one in episodes[:1]]
    return "\n".join(lines)


def lasting(reports: dict[int, dict[str, Any]]) -> str:
    """One row a window of long dreams: what is blocked and how far they are from real frames, by number of denoising steps."""
    scores = {steps: report["scores"]["imagination"] for steps, report in reports.items()}
    first = next(iter(scores.values()))
    measures = (
        ("blocked", "{}, {window}: share of forward steps blocked", "real", "dreamed"),
        ("Fréchet distance", "latents, {window}: Fréchet distance, {}", "floor", "dreamed"),
        ("AUC", "single frames, {window}: AUC, {}", "floor", "dreamed"),
    )
    columns = [f"{title}, {by}" for title, _, beside, _ in measures for by in (beside, *(f"{n} step{'s' * (n > 1)}" for n in scores))]
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for window in (key.split(", ")[1].split(":")[0] for key in first if key.startswith("real, frames")):
        cells = []
        for _, key, beside, dreamed in measures:
            cells += [_mean(first[key.format(beside, window=window)])]
            cells += [_mean(one[key.format(dreamed, window=window)]) for one in scores.values()]
        lines.append(f"| {window} | {' | '.join(cells)} |")
    return "\n".join(lines)


def precision(reports: dict[str, dict[str, Any]]) -> str:
    """One row a profile and number of environments, with its steps a second in each precision."""
    lines = [
        f"| profile | envs | {' | '.join(f'{how}, steps/s' for how in reports)} | first step of both, which compiles |",
        "|---|---|" + "---|" * (len(reports) + 1),
    ]
    for cases in zip(*(report["speed"] for report in reports.values()), strict=True):
        rates = [f"{case['steps_per_second']:.0f}" for case in cases]
        lines.append(f"| {cases[0]['profile']} | {cases[0]['envs']} | {' | '.join(rates)} | {cases[-1]['first_seconds']:.0f} s |")
    return "\n".join([*lines, "", _machine(next(iter(reports.values())))])


def live(report: dict[str, Any]) -> str:
    """One row a way of computing a step: time, memory, and for exported dreams size and differences."""
    lines = [
        "| | ms a step | steps/s | most memory, MB | download, MB | one step: largest, mean | 100 steps: largest, mean | other rewards |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, row in report["ways"].items():
        cells = [f"{row['milliseconds']:.1f}", f"{1000 / row['milliseconds']:.0f}", f"{row['peak_bytes'] / 1e6:.0f}"]
        cells.append(f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else "")
        apart = row.get("difference")
        if apart:
            cells += [
                f"{apart['one_step']}, {apart['one_step_mean']:.4f}",
                f"{apart['largest']}, {apart['mean']:.2f}",
                str(apart["rewards"]),
            ]
        lines.append(f"| {way} | {' | '.join(cells + [''] * (7 - len(cells)))} |")
    return "\n".join([*lines, "", _machine(report)])


def bench(part: str, report: dict[str, Any]) -> str:
    """What `python -m experiments.benchmark` printed of a part."""
    _, columns, rows, remarks = TABLES[part](report)
    lines = ["| " + " | ".join(row) + " |" for row in (columns, ("---",) * len(columns), *rows)]
    return "\n".join([*lines, "", *(f"{remark}.  " for remark in dict.fromkeys(remarks)), _machine(report)])


def _machine(report: dict[str, Any]) -> str:
    m = report["machine"]
    cores = f"{m['cores']} cores, {m['threads']} threads, load {m['load']:.1f} before"
    return f"Machine: {m['processor']}, {cores}, torch {m['torch']}, {m['date']}"


def _wanted(name: str) -> bool:
    """Of horizons, ages and steps a few are enough, and of SSIM and colours of what is dreamed from its own memory."""
    number = re.search(r"frame (\d+):|PSNR (\d+) frames since|step (\d+):|^(\d+) of (?:noise|black)", name)
    if number and int(next(filter(None, number.groups()))) not in (1, 10, 50, 100, 400, 401, 500, 800, 901, 1000):
        return False
    other = "stranger's|emptied|shuffled|estimated motions"
    minor = rf"({other}|repeated|single views).* SSIM|({other}).*untouched|seen (1 to 99|100 to|300 to)|: (brightness|colour)"
    return not re.search(minor, name)


def _mean(value: dict[str, Any]) -> str:
    digits = 3 if abs(value["mean"]) < 1.5 else 2
    return f"{value['mean']:.{digits}f} ± {value['error']:.{digits}f}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{_mean(value)} | {value['clips']}"
    return f"{value:.3f} | " if isinstance(value, float) else f"{value} | "


def _read(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((SCORES / name).read_text())
    return report


def _updated(path: Path, tables: dict[str, str]) -> str:
    text = path.read_text()
    for name, table in tables.items():
        pattern = rf"(<!-- numbers:{name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, table=table: m[1] + table + "\n" + m[2], text, flags=re.DOTALL)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    main()
