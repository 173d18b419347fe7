"""Fixed proposals, end to end: a separate RPN, its proposals, and a detector trained on them."""

import pickle
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

import train_net
from d2_deformable.cli import command
from d2_deformable.cli.main import main
from d2_deformable.engine import Trainer, dump_proposals

ROOT = Path(__file__).parents[2]
YAML = str(ROOT / "configs/quick/warped_shapes_rfcn_R_18.yaml")
RPN = (
    *("MODEL.META_ARCHITECTURE", "ProposalNetwork", "MODEL.RESNETS.OUT_FEATURES", "['res4']"),
    *("MODEL.RESNETS.REDUCED_CHANNELS", "0", "SOLVER.LR_MULTIPLIERS", "[]"),
)
FIXED = ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", "True")


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    return [
        *("OUTPUT_DIR", str(tmp_path / "output"), "MODEL.DEVICE", "cpu"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1"),
        *("DATASETS.CUSTOM.warped_shapes_train.NUM_IMAGES", "4"),
        *("DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES", "2"),
        *("INPUT.MIN_SIZE_TEST", "192", "INPUT.MAX_SIZE_TEST", "192"),  # the images have 160
    ]


def train(*overrides):
    return train_net.main(train_net.parse_args(["--config-file", YAML, *overrides]))


def test_a_detector_trains_on_the_proposals_of_an_rpn(small, tmp_path, capsys):
    train(*small, *RPN)
    last = (tmp_path / "output/metrics.json").read_text().splitlines()[-1]
    assert "box_proposals/AR@100" in last and "voc/AP" not in last
    weights = str(tmp_path / "output/model_final.pth")
    folder = str(tmp_path / "proposals")
    given = ["--config-file", YAML, "--weights", weights, "--output-dir", folder]
    main(["proposals", *given, *small, *RPN])
    assert capsys.readouterr().out.count("wrote ") == 2
    files = {s: f"{folder}/warped_shapes_{s}_proposals.pkl" for s in ("train", "val")}
    assert sorted(map(str, Path(folder).iterdir())) == sorted(files.values())
    content = pickle.loads(Path(files["train"]).read_bytes())
    assert len(content["ids"]) == len(content["boxes"]) == 4
    assert content["boxes"][0].shape == (100, 4) and content["boxes"][0].max() <= 160

    fixed = ("DATASETS.PROPOSAL_FILES_TRAIN", str((files["train"],)))
    fixed += ("DATASETS.PROPOSAL_FILES_TEST", str((files["val"],)))
    train(*small, *FIXED, *fixed)
    last = (tmp_path / "output/metrics.json").read_text().splitlines()[-1]
    assert "voc/AP50" in last
    trained = torch.load(weights, weights_only=True)["model"]
    assert any("roi_heads" in name for name in trained)
    assert not any("proposal_generator" in name for name in trained)
    swapped = ("DATASETS.PROPOSAL_FILES_TRAIN", str((files["val"],)))
    with pytest.raises(
        ValueError, match="the data set warped_shapes_val, not for warped_shapes_tr"
    ):
        train(*small, *FIXED, *swapped)


@torch.no_grad()
def test_proposals_fed_back_give_the_detections_of_the_joint_network(small, tmp_path):
    cfg = command.config_of(YAML, small)
    joint = build_model(cfg).eval()
    (file,) = dump_proposals(cfg, joint, ["warped_shapes_val"], tmp_path)

    cfg.merge_from_list([*FIXED, "DATASETS.PROPOSAL_FILES_TEST", (str(file),)])
    fixed = build_model(cfg).eval()
    assert fixed.proposal_generator is None
    fixed.load_state_dict(joint.state_dict(), strict=False)
    for inputs in Trainer.build_test_loader(cfg, "warped_shapes_val"):
        assert inputs[0]["image"].shape[1] == 192
        (found,), (expected,) = fixed(inputs), joint(inputs)
        found, expected = found["instances"], expected["instances"]
        assert len(expected) > 10 and len(found) == len(expected)
        torch.testing.assert_close(found.scores, expected.scores)
        found, expected = found.pred_boxes.tensor, expected.pred_boxes.tensor
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_bad_input_is_one_message(small, tmp_path):
    def refused(message, name, *arguments):
        given = ["--config-file", YAML, "--weights", str(tmp_path / name)]
        with pytest.raises(SystemExit, match=f"^d2-deformable proposals: .*{message}"):
            main(["proposals", *given, *small, *arguments])

    def save(name, *overrides):
        model = build_model(command.config_of(YAML, [*small, *overrides]))
        torch.save({"model": model.state_dict()}, tmp_path / name)
        return model

    backbone = save("joint.pth").backbone.state_dict()
    save("fixed.pth", *FIXED)
    torch.save({f"backbone.{name}": value for name, value in backbone.items()}, tmp_path / "b.pth")
    refused("gone.pth: no such checkpoint", "gone.pth")
    refused(r"b.pth is from another network.* not in the file \(proposal_generator", "b.pth")
    refused(
        "no data set nothing; .* warped_shapes_train, warped_sh",
        "joint.pth",
        "--dataset",
        "nothing",
    )
    refused("with .*PrecomputedProposals has no RPN", "fixed.pth", *FIXED)
    refused("no key MODEL.WEIGHT; did you mean MODEL.WEIGHTS", "joint.pth", "MODEL.WEIGHT", "x")
