"""Differences of configs."""

from detectron2.config import CfgNode

from d2_deformable.utils.config_files import difference


def test_only_differences_are_kept():
    default = CfgNode({"A": 1, "B": {"C": (1, 2), "D": "x"}, "E": {"F": 0}})
    cfg = default.clone()
    cfg.B.C = (1, 3)
    cfg.E = CfgNode({"F": 0, "G": {"H": 1}})
    assert difference(cfg, default) == {"B": {"C": [1, 3]}, "E": {"G": {"H": 1}}}
    assert difference(default, default) == {}
    assert difference(default, default, keep={"B.D"}) == {"B": {"D": "x"}}
