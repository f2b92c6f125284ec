"""A preference for nodes that have the models: terms of a pod's node affinity.

All models of a pod that are known share 100, the most that Kubernetes lets one term weigh; so
preferences that the pod has itself count as much beside three models as beside one. A node's label
names a quarter, and a quarter of the model is worth a quarter of its share, so that among nodes
none of which has all of it the one that has most wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from modelcache.faces.kubernetes import names

WEIGHT_MAX: Final = 100
GRADES: Final = (100, 75, 50, 25)
PATH: Final = ("affinity", "nodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution")


def preferences(ids: Sequence[Sequence[str]], spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Terms to add to a pod. ids: for each of its models, the ids it may have.

    Labels that the pod prefers already are left as they are.
    """
    known = [each for each in ids if each]
    share = WEIGHT_MAX // max(1, len(known))
    present = set(_labels(spec))
    labels = dict.fromkeys(names.warm_label(each) for ids_of_one in known for each in ids_of_one)
    return [
        _term(label, grade, max(1, share * grade // 100))
        for label in labels
        if label not in present
        for grade in GRADES
    ]


def _term(label: str, grade: int, weight: int) -> dict[str, Any]:
    expression = {"key": label, "operator": "In", "values": [str(grade)]}
    return {"weight": weight, "preference": {"matchExpressions": [expression]}}


def _labels(spec: Mapping[str, Any]) -> Iterator[str]:
    here: Any = spec
    for step in PATH:
        here = here.get(step) or {}
    for term in here or ():
        for expression in (term.get("preference") or {}).get("matchExpressions") or ():
            yield expression.get("key", "")
