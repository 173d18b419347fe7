"""Every setting this package adds to Detectron2's config: key, default, meaning, source.

A deformable YAML is its plain twin (`_BASE_`) plus these keys. Detectron2's own keys are used
wherever they exist: MODEL.RESNETS.{DEFORM_ON_PER_STAGE, DEFORM_MODULATED, DEFORM_NUM_GROUPS,
RES5_DILATION}, MODEL.ROI_BOX_HEAD.{POOLER_TYPE, POOLER_RESOLUTION}.
"""

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from .utils.config_files import merge_from_file, merge_from_list


def add_deformable_config(cfg: CN) -> None:
    """Add the keys of d2_deformable to `cfg` (a Detectron2 config), in place.

    Keys that are there already, since another plug-in builds on this one, keep their values.
    """
    given = cfg.clone()
    resnets = cfg.MODEL.RESNETS
    # How many of the last 3x3 convolutions, in network order, become deformable. Crosses stages:
    # in ResNet-101 3 is res5.{0,1,2}, 6 reaches into res4. Paper table 1; its default choice is 3.
    # A block of Aligned-Inception-ResNet has three: 3 is its last block, 9 all of res5.
    resnets.DEFORM_NUM_LAYERS = 0
    # More convolutions that become deformable, by their names in the backbone, e.g.
    # ["res4.22.conv2"]. Together with DEFORM_NUM_LAYERS and DEFORM_ON_PER_STAGE.
    resnets.DEFORM_LAYERS = []
    # Value of a sample outside the map: "zero" is bilinear interpolation on a zero-padded map
    # (paper eq. 3 and 4, torchvision, Detectron2); "legacy" is the rule of the 2017 operator.
    resnets.DEFORM_BORDER = "zero"
    # Dilation of the 3x3 convolutions that predict the offsets; 0 takes that of the convolution
    # they steer. The released R-FCN and Faster R-CNN dilate them by 2, the released DeepLab by 1.
    resnets.DEFORM_OFFSET_DILATION = 0
    # Offsets of deformable convolutions are clamped to +- this many feature-map cells; 0 leaves
    # them free, as the paper does. A remedy where `OffsetHealth` warns that they run away.
    resnets.DEFORM_OFFSET_CLAMP = 0.0
    # Channels of a randomly initialised 1x1 convolution + ReLU on res5, the feature map
    # "res5_reduced" of MODEL.RESNETS.OUT_FEATURES; 0 leaves it out. Paper sec. 2.3: 1024 for
    # R-FCN and class-aware RPN, 256 for Faster R-CNN.
    resnets.REDUCED_CHANNELS = 0
    # Standard deviation of its initial weights: 0.01 as released, for pre-trained networks; 0 takes
    # He initialisation, which a network from scratch needs to pass enough gradient down.
    resnets.REDUCED_INIT_STD = 0.01
    # The max pooling of the stem (3x3, stride 2) takes no padding and rounds sizes up, as in Caffe
    # and the released networks; False pads by 1 and rounds down, as Detectron2.
    resnets.STEM_POOL_CEIL = False

    # FrozenBN or FREEZE_AT > 0 keep random layers random when MODEL.WEIGHTS is empty. Training
    # then stops with a message unless this is True.
    cfg.MODEL.BACKBONE.ALLOW_FROZEN_RANDOM = False
    # In training keep the inputs of the backbone's blocks alone and compute them again for the
    # gradients, which stay the same: less memory for one more forward pass (Chen et al. 2016,
    # "Training deep nets with sublinear memory cost").
    cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINT = False

    # Which proposals train RFCNHeads: "random" (BATCH_SIZE_PER_IMAGE at POSITIVE_FRACTION,
    # as Detectron2) or "ohem" (the BATCH_SIZE_PER_IMAGE with the highest loss of all proposals
    # of the image, as released with R-FCN).
    cfg.MODEL.ROI_HEADS.SAMPLING = "random"

    # PROPOSAL_GENERATOR.NAME gains "LegacyRPN": proposals by the rules of the released
    # operator_py/proposal.py, see modeling/proposal_generator.py.

    # POOLER_TYPE gains "DeformROIPool" and "LegacyROIPool", the max pooling of the released Faster
    # R-CNN (DeformROIHeads), "PSROIPool" and "DeformPSROIPool" (RFCNHeads). "ROIAveragePool" and
    # "PSROIAveragePool" are the deformable ones without offsets: what their gain is measured
    # against. The keys below shape these four.
    # Networks of mmdetection need its own sampling and offset layers, one set per level:
    # "DeformROIAlign" (its dpool) and "ModulatedDeformROIAlign" (mdpool), both DeformROIHeads. Of
    # the keys below they read DEFORM_GAMMA only, and Detectron2's POOLER_SAMPLING_RATIO.
    box_head = cfg.MODEL.ROI_BOX_HEAD
    # Offsets are fractions of the RoI's size times this (gamma of paper sec. 2.2).
    box_head.DEFORM_GAMMA = 0.1
    # Samples per bin and axis.
    box_head.DEFORM_SAMPLES_PER_PART = 4
    # Round box corners to whole pixels before scaling, as the original operators do.
    box_head.ROUND_ROIS = True

    # [[regex, factor], ...]: the learning rate of a parameter whose full name matches (re.search)
    # is multiplied by the factor; several matches multiply; a regex without a match is an error.
    # Only `d2_deformable.engine.build_optimizer` reads it: a trainer of another project calls it
    # in its own `build_optimizer`, or the factors have no effect.
    cfg.SOLVER.LR_MULTIPLIERS = []

    # What is written and told of offsets while training, see d2_deformable/engine/offset_health.py.
    health = cfg.OFFSET_HEALTH = CN()
    # Iterations between two measurements; 20 is Detectron2's writing period; 0 switches it off.
    health.PERIOD = 20
    # Offsets whose 99th percentile is still below MIN_CONV (feature-map cells) or MIN_ROI (fraction
    # of the RoI) after this many iterations stay at zero: the length of Detectron2's warm-up.
    health.ZERO_AFTER = 1000
    # A sample moved by 0.01 cells changes by at most 1 % of the difference of two neighbours;
    # 0.001 of a RoI of 10 cells is the same.
    health.MIN_CONV = 0.01
    health.MIN_ROI = 0.001
    # Offsets run away when their 99th percentile exceeds this share of the map's shorter side: the
    # paper's widest filters (table 2) reach about a third of it ...
    health.MAX_CONV = 0.5
    # ... or this many RoI sizes, where no part lies in its RoI any more; or when more than this
    # share of samples was moved out of the map.
    health.MAX_ROI = 1.0
    health.MAX_OUTSIDE = 0.25

    # Train without the objects that VOC marks `difficult`, as the released code does (its
    # lib/dataset/pascal_voc.py); Detectron2 keeps them. Evaluation is not touched.
    cfg.INPUT.DROP_DIFFICULT = False

    # A user's own data sets: {name: {FORMAT, ROOT, IMAGES, SPLIT, CLASSES, and ANNOTATIONS or
    # MASKS, IGNORE}}, see d2_deformable/data/custom.py.
    cfg.DATASETS.CUSTOM = CN(new_allowed=True)

    # Average precision of VOC: "07" (11 points; the paper's) or "area" (VOC 2010 and later).
    cfg.TEST.VOC_METRIC = "area"
    # Where mIoU is taken: "full" is the size of the image; as released, the input's size with
    # "resized_ground_truth" (VOC), or predictions of the input's size become the image's as
    # "resized_prediction" (Cityscapes), both by the nearest pixel.
    cfg.TEST.SEM_SEG_RESOLUTION = "full"

    # Iterative bounding-box average at test time (paper table 5, "+B"; Gidaris and Komodakis 2015),
    # together with TEST.AUG (several scales, "+M") where that is enabled, else at one scale. For
    # detectors whose RoI heads offer predict_boxes, and ClassAwareRPN; see modeling/tta.py.
    average = cfg.TEST.BOX_AVERAGE = CN()
    average.ENABLED = False
    # Passes over an image: each after the first scores and regresses the boxes of the one before;
    # 1 averages the boxes of one pass, all that ClassAwareRPN can do. Inferred from the reference.
    average.ITERATIONS = 2
    # A box takes part in the mean from this IoU on. Inferred from the reference.
    average.VOTE_IOU = 0.5

    cfg.merge_from_other_cfg(given)


def read_config(config_file, overrides=()) -> CN:
    """Detectron2's defaults and this package's, then the YAML, then the overrides; not frozen.

    Args:
        overrides: KEY, VALUE, KEY, VALUE, ...

    Raises:
        ValueError: one sentence on a key that does not exist or a value of another type, or on a
            file that is no YAML.
        FileNotFoundError: no such file, or one that it builds on.
    """
    cfg = get_cfg()
    add_deformable_config(cfg)
    merge_from_file(cfg, config_file)
    merge_overrides(cfg, overrides)
    return cfg


def merge_overrides(cfg: CN, overrides) -> None:
    """Set KEY, VALUE, KEY, VALUE, ... in `cfg`, fields of DATASETS.CUSTOM that are new too.

    Raises:
        ValueError: one sentence on a key that does not exist or a value of another type.
    """
    # yacs takes new keys from files alone, and insists on the type of the value that is there.
    for key in overrides[::2]:
        if key.startswith("DATASETS.CUSTOM.") and key.count(".") == 3:
            name, field = key.split(".")[2:]
            cfg.DATASETS.CUSTOM.setdefault(name, CN(new_allowed=True))[field] = None
    merge_from_list(cfg, overrides)
