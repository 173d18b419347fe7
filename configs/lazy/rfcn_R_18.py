"""R-FCN on a half-width ResNet-18, from scratch: ../quick/Base-rfcn_R_18.yaml."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet

from .rfcn import dconv, dpool, model

model.backbone.update(freeze_at=0, reduced_channels=256, reduced_init_std=0.0)
model.backbone.stem.update(out_channels=32, norm="BN")
model.backbone.stages = [
    L(ResNet.make_stage)(
        block_class=BasicBlock,
        num_blocks=2,
        stride_per_block=[stride, 1],
        in_channels=in_channels,
        out_channels=out_channels,
        norm="BN",
    )
    for stride, in_channels, out_channels in ((1, 32, 32), (2, 32, 64), (2, 64, 128), (2, 128, 256))
]
model.proposal_generator.update(
    anchor_boundary_thresh=-1, pre_nms_topk=(1000, 500), post_nms_topk=(200, 100)
)
model.proposal_generator.anchor_generator.sizes = [[32, 64, 128]]
model.proposal_generator.head.update(in_channels=128, conv_dims=[-1])
model.roi_heads.update(batch_size_per_image=32, positive_fraction=0.5, ohem=False)
model.roi_heads.box_predictor.test_topk_per_image = 100
model.update(pixel_mean=[103.530, 116.280, 123.675], pixel_std=[57.4, 57.1, 58.4])
