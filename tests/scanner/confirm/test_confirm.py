"""compare --confirm: every kind of laundering, unrelated networks, what cannot be tested, and what is printed."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from confirm.networks import CONFIG, network, save, trained_on

from laundering import KINDS
from weightprint.compare.invariants import LAUNDERING
from weightprint.confirm.outcome import confirm_pair
from weightprint.data import Confirmation
from weightprint.gather import one_checkpoint

Call = Callable[..., tuple[int, str, str]]
ACCUSING = ("stole", "cop" + "ied", "plagiar", "guilt")


def confirmed(a: Path, b: Path) -> Confirmation:
    return confirm_pair(one_checkpoint(a), one_checkpoint(b), "cpu")


def laundered(kind: str, seed: int = 1, drift: float = 0.0) -> dict[str, torch.Tensor]:
    weights = network(seed)
    weights = trained_on(weights, 9, drift) if drift else weights
    return KINDS[kind](CONFIG, weights, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("drift", [0.0, 0.05])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "heads permuted, residual rotated"])
def test_a_laundered_network_is_confirmed(kind: str, drift: float, tmp_path: Path) -> None:
    found = confirmed(save(tmp_path / "a", network(1)), save(tmp_path / "b", laundered(kind, drift=drift)))
    assert found.outcome == "confirmed"
    assert found.log10_p is not None
    assert found.log10_p <= -6
    assert found.log10_p == pytest.approx(min(test.log10_p + test.log10_factor for test in found.tests))


def test_where_every_order_was_changed_nothing_is_proven_and_nothing_withdrawn(tmp_path: Path) -> None:
    changed = laundered("heads permuted, residual rotated")
    found = confirmed(save(tmp_path / "a", network(1)), save(tmp_path / "b", changed))
    assert found.outcome == "not possible"
    assert "no exact test can judge" in found.reasons[0]


def test_unrelated_networks_are_never_confirmed(tmp_path: Path) -> None:
    folders = [save(tmp_path / str(seed), network(seed)) for seed in range(6)]
    for place, a in enumerate(folders):
        for b in folders[:place]:
            found = confirmed(a, b)
            assert found.outcome == "withdrawn"
            assert found.log10_p is not None
            assert found.log10_p > -4
            assert found.unit_matching is not None
            assert found.unit_matching.agreeing < 0.2 * found.unit_matching.units


def test_units_are_matched_wherever_they_were_moved(tmp_path: Path) -> None:
    found = confirmed(save(tmp_path / "a", network(1)), save(tmp_path / "b", laundered("units permuted")))
    assert found.unit_matching is not None
    assert (found.unit_matching.layers, found.unit_matching.units) == (6, 6 * 96)
    assert found.unit_matching.agreeing == 6 * 96


def test_the_command_turns_a_flag_into_a_verdict(tmp_path: Path, call: Call) -> None:
    a, b = save(tmp_path / "a", network(1)), save(tmp_path / "b", laundered("units permuted"))
    code, out, _ = call("compare", a, b, "--device", "cpu", "--json")
    before = json.loads(out)
    assert (code, before["verdict"]) == (0, "similar-profile")
    assert before["reasons"][0].startswith(LAUNDERING)
    assert set(before["agreement"]["curves"]) >= {"qk", "vo"}
    assert "confirm" not in before
    code, out, _ = call("compare", a, b, "--confirm", "--device", "cpu", "--json")
    after = json.loads(out)
    assert (code, after["verdict"]) == (0, "shared-origin")
    assert after["confirm"]["outcome"] == "confirmed"
    assert after["log10_p"] == after["confirm"]["log10_p"] <= -6
    assert after["pair_log10_p"] == before["pair_log10_p"]
    assert "tests of the weights, the second of two looks" in after["reasons"][0]
    assert "did not see it" in after["reasons"][0]
    assert any(reason.startswith("the order of attention's units alone does not") for reason in after["reasons"])
    assert not any("is not rejected" in reason for reason in after["reasons"])
    assert not any(reason.startswith(LAUNDERING) for reason in after["reasons"])
    assert not any(word in out.lower() for word in ACCUSING)
    for test in after["confirm"]["tests"]:
        assert ("blocks" in test) != ("count" in test)
        assert math.isfinite(test["log10_p"])


def test_the_command_takes_a_flag_back(tmp_path: Path, call: Call) -> None:
    """Another network whose curves are those of the first to the last digit."""
    weights, other = network(1), network(2)
    for name, tensor in other.items():
        if "self_attn" in name:
            other[name] = (
                tensor * (weights[name].double().std(correction=0) / tensor.double().std(correction=0)).float()
            )
    a, b = (save(tmp_path / n, w, dtype=torch.float32) for n, w in (("a", weights), ("b", other)))
    assert json.loads(call("compare", a, b, "--device", "cpu", "--json")[1])["verdict"] == "similar-profile"
    code, out, _ = call("compare", a, b, "--confirm", "--device", "cpu", "--json")
    document = json.loads(out)
    assert (code, document["verdict"], document["confirm"]["outcome"]) == (0, "no-evidence", "withdrawn")
    assert document["reasons"][0].startswith("the flag of possible laundering is withdrawn")
    assert "no proof of independence" in document["reasons"][0]
    assert "confirm: withdrawn" in call("compare", a, b, "--confirm", "--device", "cpu")[1]


def test_without_a_flag_nothing_is_said_to_be_withdrawn(tmp_path: Path, call: Call) -> None:
    a, b = (save(tmp_path / str(seed), network(seed)) for seed in (1, 2))
    assert json.loads(call("compare", a, b, "--confirm", "--device", "cpu", "--json")[1])["confirm"]["outcome"] == (
        "withdrawn"
    )
    out = call("compare", a, b, "--confirm", "--device", "cpu")[1]
    assert "confirm: nothing found" in out
    assert "(about 6 by chance; a figure, no proof)" in " ".join(out.split())


def test_the_table_shows_what_was_tested(tmp_path: Path, call: Call) -> None:
    a, b = save(tmp_path / "a", network(1)), save(tmp_path / "b", laundered("values mixed"))
    _, out, _ = call("compare", a, b, "--confirm", "--device", "cpu")
    assert "confirm: confirmed" in out
    assert "residual: embedding" in out
    assert "48 heads" in out
    assert "find the same partner by gate and by up" in out


def test_evidence_is_not_taken_back(tmp_path: Path, call: Call) -> None:
    a, b = save(tmp_path / "a", network(1)), save(tmp_path / "b", trained_on(network(1), 4, 0.05))
    document = json.loads(call("compare", a, b, "--confirm", "--device", "cpu", "--json")[1])
    assert document["verdict"] == "shared-origin"
    assert "order of units" in document["reasons"][0]
    assert "says the same" in document["reasons"][-1]


def test_a_fingerprint_has_no_weights_to_read(tmp_path: Path, call: Call) -> None:
    a, taken = save(tmp_path / "a", network(1)), tmp_path / "a.weightprint"
    assert call("fingerprint", a, "-o", taken, "--device", "cpu")[0] == 0
    code, out, err = call("compare", a, taken, "--confirm")
    assert (code, out) == (2, "")
    assert "E_USAGE" in err
    assert "name the checkpoint" in err


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"model_type": "whisper"}, "residual"),
        ({"model_type": "some-new-family"}, "residual"),
        ({"model_type": "some-new-family"}, "heads"),
        ({"model_type": "bloom"}, "heads"),
        ({"vision_config": {"model_type": "vit_mae"}}, "residual"),
        ({"model_type": None}, "residual"),
        ({"model_type": None}, "heads"),
        ({"sinusoidal_pos_embds": True}, "residual"),
        ({"alibi": True}, "heads"),
        ({"position_embedding_type": "alibi"}, "heads"),
        ({"attn_config": {"alibi": True}}, "heads"),
    ],
    ids=str,
)
def test_what_is_not_exchangeable_is_not_tested(changes: dict[str, Any], missing: str, tmp_path: Path) -> None:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    folders = [save(tmp_path / name, network(1), config) for name in "ab"]
    found = confirmed(folders[0], folders[1])
    assert missing not in {test.name.split(":")[0] for test in found.tests}
    assert any(reason.startswith(f"{missing} test not made") for reason in found.reasons)


def test_a_flag_that_is_off_refuses_nothing(tmp_path: Path) -> None:
    config = {**CONFIG, "alibi": False, "sinusoidal_pos_embds": False}
    folders = [save(tmp_path / name, network(1), config) for name in "ab"]
    names = {test.name.split(":")[0] for test in confirmed(folders[0], folders[1]).tests}
    assert names == {"residual", "hidden", "heads"}


def test_weights_that_cannot_be_read_make_it_impossible(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a", network(1)), save(tmp_path / "b", network(2))
    checkpoints = one_checkpoint(a), one_checkpoint(b)
    (b / "model.safetensors").unlink()
    found = confirm_pair(*checkpoints, "cpu")
    assert (found.outcome, found.tests, found.log10_p) == ("not possible", (), None)
    assert found.reasons


def test_a_network_without_matrices_of_its_own_is_not_possible(tmp_path: Path) -> None:
    a = save(tmp_path / "a", network(1))
    b = save(tmp_path / "b", {name: own for name, own in network(2).items() if "v_proj" not in name})
    found = confirmed(a, b)
    assert found.outcome == "not possible"
    assert "q, k, v and o" in found.reasons[0]
