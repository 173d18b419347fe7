"""A deformable network is its plain twin plus offsets: both start equal, and without offsets they
stay equal in training."""

import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling import build_model
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.structures import Boxes, Instances
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from d2_deformable.engine import build_optimizer
from d2_deformable.layers import DeformConv2d
from d2_deformable.modeling import poolers
from yamls import CONFIGS, QUICK, VARIANTS, load, plain_twin, relative

OFFSETS = ("conv_offset", "offset_fc", "offset_maps")
AVERAGE = {"DeformROIPool": "ROIAveragePool", "DeformPSROIPool": "PSROIAveragePool"}


def built(path, overrides=()):
    cfg = load(path)
    cfg.merge_from_list([*overrides])
    cfg.MODEL.DEVICE = "cpu"
    seed_all_rng(cfg.SEED)
    return cfg, build_model(cfg)


def different(plain, deformable):
    """Names of parameters and buffers that differ or that only one of the networks has."""
    plain, deformable = plain.state_dict(), deformable.state_dict()
    wrong = [n for n in plain if n not in deformable or not torch.equal(plain[n], deformable[n])]
    return wrong + [n for n in deformable.keys() - plain if not any(o in n for o in OFFSETS)]


@pytest.mark.parametrize("path", [p for p in VARIANTS if p in QUICK], ids=relative)
def test_twins_start_from_the_same_weights(path):
    _, plain = built(plain_twin(path))
    _, variant = built(path)
    assert not different(plain, variant)
    assert torch.equal(torch.rand(4), _rand_after(plain_twin(path))), "the random state differs"


def _rand_after(path):
    built(path)
    return torch.rand(4)


def test_a_layer_that_draws_is_found(monkeypatch):
    path = CONFIGS / "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
    original = DeformConv2d.from_conv.__func__

    def drawing(cls, conv, **kwargs):
        torch.rand(1)
        return original(cls, conv, **kwargs)

    monkeypatch.setattr(DeformConv2d, "from_conv", classmethod(drawing))
    assert different(built(plain_twin(path))[1], built(path)[1])


def batch(seed):
    """Two images of objects on noise, for both tasks."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for _ in range(2):
        image = 40 * torch.randn(3, 96, 96, generator=generator) + 110
        labels = torch.zeros(96, 96, dtype=torch.int64)
        gt = Instances((96, 96))
        x0, y0 = torch.randint(0, 40, (2,), generator=generator).tolist()
        boxes = [[x0, y0, x0 + 32.0, y0 + 40.0], [50.0, 50.0, 90.0, 82.0]]
        for k, (left, top, right, bottom) in enumerate(boxes):
            area = slice(int(top), int(bottom)), slice(int(left), int(right))
            image[k, *area] += 100
            labels[area] = k + 1
        gt.gt_boxes, gt.gt_classes = Boxes(torch.tensor(boxes)), torch.tensor([0, 1])
        inputs.append({"image": image, "instances": gt, "sem_seg": labels})
    return inputs


def losses(path, overrides, steps=20):
    cfg, model = built(path, [*overrides, "SOLVER.BASE_LR", 0.005])
    model.double().train()
    optimizer = build_optimizer(cfg, model)
    history = []
    with EventStorage():
        for step in range(steps):
            torch.manual_seed(step)  # for sampling anchors and proposals
            total = sum(model(batch(step)).values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            history.append(total.item())
    return torch.tensor(history), model


def zero_rate(cfg):
    """LR_MULTIPLIERS of `cfg`, changed so that offsets stay at zero."""
    others = [entry for entry in cfg.SOLVER.LR_MULTIPLIERS if entry[0] not in OFFSETS]
    return ["SOLVER.LR_MULTIPLIERS", [*others, ["|".join(OFFSETS), 0.0]]]


def _nms_of_doubles(boxes, scores, levels, threshold):
    return batched_nms(boxes, scores.float(), levels, threshold)


def _rois_of_doubles(boxes):
    return convert_boxes_to_pooler_format(boxes).double()


@pytest.mark.parametrize(
    "name",
    [
        "deeplab_R_18_dconv3",
        pytest.param("class_aware_rpn_R_18_dconv3", marks=pytest.mark.slow),
        pytest.param("rfcn_R_18_dconv3_dpool", marks=pytest.mark.slow),
    ],
)
def test_without_its_offsets_it_follows_the_plain_network(name, monkeypatch):
    """Runs in double precision, since rounding must not select other proposals. Detectron2's boxes
    are always float32, so two of its functions are replaced."""
    monkeypatch.setattr(proposal_utils, "batched_nms", _nms_of_doubles)
    monkeypatch.setattr(poolers, "convert_boxes_to_pooler_format", _rois_of_doubles)
    path = CONFIGS / f"quick/warped_shapes_{name}.yaml"
    cfg = load(path)
    pooler = AVERAGE.get(cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE)
    average = ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", pooler] if pooler else []
    plain, _ = losses(plain_twin(path), average)
    held, model = losses(path, zero_rate(cfg))
    torch.testing.assert_close(held, plain, rtol=1e-5, atol=1e-5)
    assert all(not p.any() for n, p in model.named_parameters() if any(o in n for o in OFFSETS))
    learned, _ = losses(path, [])
    assert not torch.allclose(learned, plain, rtol=1e-5, atol=1e-5)
