"""Every setting this package adds to Detectron2's config: key, default, meaning, source.

A deformable YAML is its plain twin (`_BASE_`) plus these keys. Detectron2's own keys are used
wherever they exist: MODEL.RESNETS.{DEFORM_ON_PER_STAGE, DEFORM_MODULATED, DEFORM_NUM_GROUPS,
RES5_DILATION}, MODEL.ROI_BOX_HEAD.{POOLER_TYPE, POOLER_RESOLUTION}.
"""

from detectron2.config import CfgNode as CN


def add_deformable_config(cfg: CN) -> None:
    """Add the keys of d2_deformable to `cfg` (a Detectron2 config), in place.

    Keys that are there already, since another plug-in builds on this one, keep their values.
    """
    given = cfg.clone()
    resnets = cfg.MODEL.RESNETS
    # How many of the last 3x3 convolutions, in network order, become deformable. Crosses stages:
    # in ResNet-101 3 is res5.{0,1,2}, 6 reaches into res4. Paper table 1; its default choice is 3.
    resnets.DEFORM_NUM_LAYERS = 0
    # Value of a sample outside the map: "zero" is bilinear interpolation on a zero-padded map
    # (paper eq. 3 and 4, torchvision, Detectron2); "legacy" is the rule of the 2017 operator.
    resnets.DEFORM_BORDER = "zero"
    # Dilation of the 3x3 convolutions that predict the offsets; 0 takes that of the convolution
    # they steer. The released R-FCN and Faster R-CNN dilate them by 2, the released DeepLab by 1.
    resnets.DEFORM_OFFSET_DILATION = 0
    # Channels of a randomly initialised 1x1 convolution + ReLU on res5, the feature map
    # "res5_reduced" of MODEL.RESNETS.OUT_FEATURES; 0 leaves it out. Paper sec. 2.3: 1024 for
    # R-FCN and class-aware RPN, 256 for Faster R-CNN.
    resnets.REDUCED_CHANNELS = 0
    # Standard deviation of its initial weights: 0.01 as released, for pre-trained networks; 0 takes
    # He initialisation, which a network from scratch needs to pass enough gradient down.
    resnets.REDUCED_INIT_STD = 0.01

    # FrozenBN or FREEZE_AT > 0 keep random layers random when MODEL.WEIGHTS is empty. Training
    # then stops with a message unless this is True.
    cfg.MODEL.BACKBONE.ALLOW_FROZEN_RANDOM = False

    # Which proposals train RFCNHeads: "random" (BATCH_SIZE_PER_IMAGE at POSITIVE_FRACTION,
    # as Detectron2) or "ohem" (the BATCH_SIZE_PER_IMAGE with the highest loss of all proposals
    # of the image, as released with R-FCN).
    cfg.MODEL.ROI_HEADS.SAMPLING = "random"

    # POOLER_TYPE gains "DeformROIPool" (DeformROIHeads), "PSROIPool" and "DeformPSROIPool"
    # (RFCNHeads). The keys below shape the deformable ones.
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

    # Train without the objects that VOC marks `difficult`, as the released code does (its
    # lib/dataset/pascal_voc.py); Detectron2 keeps them. Evaluation is not touched.
    cfg.INPUT.DROP_DIFFICULT = False

    # A user's own data sets: {name: {FORMAT, ROOT, IMAGES, ANNOTATIONS, SPLIT, CLASSES}}, see
    # d2_deformable/data/custom.py.
    cfg.DATASETS.CUSTOM = CN(new_allowed=True)

    # Average precision of VOC: "07" (11 points; the paper's) or "area" (VOC 2010 and later).
    cfg.TEST.VOC_METRIC = "area"

    # Iterative bounding-box average at test time (paper table 5, "+B"; Gidaris and Komodakis 2015),
    # together with TEST.AUG (several scales, "+M") where that is enabled, else at one scale. Needs
    # MODEL.META_ARCHITECTURE DeformRCNN or ClassAwareRPN; see modeling/tta.py.
    average = cfg.TEST.BOX_AVERAGE = CN()
    average.ENABLED = False
    # Passes over an image: each after the first scores and regresses the boxes of the one before;
    # 1 averages the boxes of one pass, all that ClassAwareRPN can do. Inferred from the reference.
    average.ITERATIONS = 2
    # A box takes part in the mean from this IoU on. Inferred from the reference.
    average.VOTE_IOU = 0.5

    cfg.merge_from_other_cfg(given)
