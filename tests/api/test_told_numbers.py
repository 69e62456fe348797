"""Costs that answers tell can be sent back as a ceiling, and buy the plan that they are of."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.fields import format_used, parse_budget
from service.bundle import Manifest
from service.core import Budget, Decision, Plan, Reason, told
from tests.api.server import labels, running
from tests.pictures import quarters

COSTS = (0.0003, 4.9644, 4.965, 4.9654, 123.45678, 12345.6781)


@given(st.floats(0.001, 1e6))
def test_a_told_number_is_the_next_one_of_three_decimals(cost: float) -> None:
    assert cost <= told(cost) < cost + 0.001 + 1e-9 * cost
    assert told(told(cost)) == told(cost)


@given(st.floats(0.001, 1e6))
def test_compute_used_can_be_sent_back(cost: float) -> None:
    plan = Plan("d1", 1, 1.0, 1.0, cost, 0.5)
    used = dict(
        http_sf.parse(
            format_used(Decision(plan, Reason.GATE, 0.5), 6).encode(), tltype="dictionary"
        )
    )
    budget = parse_budget([f"gflops={used['gflops'][0]}"])
    assert budget.gflops == plan.price
    assert plan.gflops <= plan.price


@pytest.mark.parametrize("cost", COSTS)
def test_every_place_tells_the_same_number_and_it_buys_the_plan(
    fake_manifest: Manifest, cost: float
) -> None:
    first, second, *others = fake_manifest.encoder_plans
    first, dear = replace(first, gflops=cost), replace(second, gflops=cost * 1.5 + 1)
    plans = tuple(sorted((first, dear, *others), key=lambda plan: plan.gflops))
    manifest = replace(fake_manifest, encoder_plans=plans)
    encoded = base64.b64encode(quarters()).decode()
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded]}
    with running(manifest, max_loss=0.0) as server:
        for plan in server.http.get("/plans").json()["plans"]:
            ceiling = {"Compute-Budget": f"gflops={plan['gflops']}, max-loss=0"}
            answer = server.post(quarters(), ceiling)
            usage = answer.json()["usage"]
            assert (usage["plan"], usage["gflops"]) == (plan["name"], plan["gflops"])
            field = answer.headers["compute-used"]
            (spent,) = [part for part in field.split(", ") if part.startswith("gflops=")]
            again = server.post(quarters(), {"Compute-Budget": f"{spent}, max-loss=0"})
            assert again.json()["usage"]["plan"] == plan["name"]
            inference = server.http.post(
                f"/v2/models/{manifest.name}/infer",
                json={
                    "inputs": [image],
                    "outputs": [{"name": "segments"}],
                    "parameters": {"gflops": plan["gflops"], "max_loss": 0},
                },
            ).json()["parameters"]
            assert (inference["plan"], inference["gflops"]) == (plan["name"], plan["gflops"])
        cheapest = server.post(quarters(), {"Compute-Budget": "gflops=0.001"})
        if cheapest.status_code == 422:
            told_cost = cheapest.json()["cheapest"]["gflops"]
            assert f"gflops={told_cost}" in cheapest.json()["detail"]
            spent = f"gflops={json.dumps(told_cost)}"
            assert labels(
                server.post(quarters(), {"Compute-Budget": spent, "Accept": "image/png"})
            ).shape == (48, 64)


def test_a_ceiling_between_a_cost_and_its_price_buys_the_plan(fake_manifest: Manifest) -> None:
    from tests.serving import segmenter_of

    plan, *others = fake_manifest.encoder_plans
    manifest = replace(fake_manifest, encoder_plans=(replace(plan, gflops=1.9644), *others))
    policy = segmenter_of(manifest).model.policies.default
    assert policy.affordable(Budget(gflops=1.9646), Budget()) == {0}
