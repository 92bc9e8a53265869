"""A zoo of small models with known lineage: seeds of one recipe, and what people make out of a model.

Trains models of Llama's and of GPT-2's layout on the sources of Python's standard library and derives others from them,
into DIR/models, with their lineage in DIR/lineage.json. What is there already and would come out the same is not made
again (DIR/.exact). One thread a process: the weights do not depend on how many processes share the work.

93 members with ``--quick`` (150 steps, 4 layers) took 245 seconds of CPU time, all 102 (500 steps, 6 layers) 2,100, on
two cores that others used too. log10 p of the order of attention units against seed 0, corrected within the pair:

    made of seed 0                              quick     all
    light fine-tune                              -134    -198
    heavy fine-tune                               -58    -109
    trained on as long again                      -12     -26
    twice as long, at twice the rate             -0.1    -4.5
    layers left out                               -35     -35
    half of a merge with an unrelated seed        -15     -28
    scratch again, same seed, other data order    -23    -3.0

    python bench/zoo.py DIR [--quick] [--processes 2]
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import torch
from zoo_parts.lineage import Member, described, keys
from zoo_parts.members import FULL, QUICK, members
from zoo_parts.models import keep, kept
from zoo_parts.stored import store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--quick", action="store_true", help="shorter training of fewer seeds and fewer layers")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    build(options.directory, members(QUICK if options.quick else FULL), options.processes)


def build(directory: Path, wanted: Sequence[Member], processes: int) -> None:
    """Make what is not there, each member as soon as its parents are, and write the lineage of all."""
    began = time.perf_counter()
    key = keys(wanted)
    exact = {member.name: directory / ".exact" / key[member.name] / f"{member.name}.safetensors" for member in wanted}
    waiting, running, done = list(wanted), dict[Future[float], Member](), set[str]()
    # Spawned, not forked: a fork of a process that has used torch may hang.
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        while waiting or running:
            ready = [member for member in waiting if done.issuperset(member.parents)]
            # No more than there are processes, so that of those ready the first in the list goes first.
            for member in ready[: processes - len(running)]:
                waiting.remove(member)
                running[pool.submit(make, directory, member, exact)] = member
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                member = running.pop(future)
                print(f"{time.perf_counter() - began:6.0f} s  {member.name}: {future.result():.1f} s", flush=True)
                done.add(member.name)
    by_name = {member.name: member for member in wanted}
    lineage = {"members": [{**described(member, by_name), "key": key[member.name]} for member in wanted]}
    (directory / "lineage.json").write_text(json.dumps(lineage, indent=1))
    for folder in (directory / "models").iterdir():
        if folder.name not in by_name:
            shutil.rmtree(folder)  # of an earlier list of members; its lineage is no longer known


def make(directory: Path, member: Member, exact: Mapping[str, Path]) -> float:
    """One member, out of its parents' exact weights; gives the seconds that it took."""
    began = time.perf_counter()
    path = exact[member.name]
    if not path.exists():
        keep(path, member.make(*(kept(exact[parent]) for parent in member.parents)))
    store(directory / "models" / member.name, kept(path), member.layout, member.encoding, member.claim)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
