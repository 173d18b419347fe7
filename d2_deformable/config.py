"""Every setting this package adds to Detectron2's config: key, default, meaning, source.

A deformable YAML is its plain twin (`_BASE_`) plus these keys. Detectron2's own keys are used
wherever they exist: MODEL.RESNETS.{DEFORM_ON_PER_STAGE, DEFORM_MODULATED, DEFORM_NUM_GROUPS,
RES5_DILATION}, MODEL.ROI_BOX_HEAD.{POOLER_TYPE, POOLER_RESOLUTION}.
"""

from . import needs_detectron2  # noqa: F401  # isort: skip
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from .utils.config_files import difference, merge_from_file, merge_from_list


def add_deformable_config(cfg: CN) -> None:
    """Add the keys of d2_deformable to `cfg` (a Detectron2 config), in place.

    Keys that exist already, because another plug-in builds on this one, keep their values.
    """
    given = cfg.clone()
    resnets = cfg.MODEL.RESNETS
    # Number of the last 3x3 convolutions, in network order, that become deformable. They may span
    # stages: in ResNet-101, 3 means res5.{0,1,2}, and 6 reaches into res4. Paper table 1; the paper
    # uses 3. A block of Aligned-Inception-ResNet has three: 3 is its last block, 9 all of res5.
    resnets.DEFORM_NUM_LAYERS = 0
    # Further convolutions that become deformable, by their names in the backbone, e.g.
    # ["res4.22.conv2"]; added to those of DEFORM_NUM_LAYERS and DEFORM_ON_PER_STAGE.
    resnets.DEFORM_LAYERS = []
    # Value of a sample outside the map: "zero" is bilinear interpolation on a zero-padded map
    # (paper eq. 3 and 4, torchvision, Detectron2); "legacy" is the rule of the 2017 operator.
    resnets.DEFORM_BORDER = "zero"
    # Dilation of the 3x3 convolutions that predict the offsets; 0 uses that of the deformable
    # convolution. The released R-FCN and Faster R-CNN dilate them by 2, the released DeepLab by 1.
    resnets.DEFORM_OFFSET_DILATION = 0
    # Clamp offsets of deformable convolutions to +- this many feature-map cells; 0 does not clamp
    # them, as in the paper. A remedy if `OffsetHealth` warns that they run away.
    resnets.DEFORM_OFFSET_CLAMP = 0.0
    # Channels of a randomly initialised 1x1 convolution + ReLU on res5, the feature map
    # "res5_reduced" of MODEL.RESNETS.OUT_FEATURES; 0 leaves it out. Paper sec. 2.3: 1024 for
    # R-FCN and class-aware RPN, 256 for Faster R-CNN.
    resnets.REDUCED_CHANNELS = 0
    # Standard deviation of its initial weights: 0.01 as released, for pre-trained networks; 0 uses
    # He initialisation, which training from scratch needs for large enough gradients.
    resnets.REDUCED_INIT_STD = 0.01
    # The max pooling of the stem (3x3, stride 2) has no padding and rounds sizes up, as in Caffe
    # and the released networks; False pads by 1 and rounds down, as in Detectron2.
    resnets.STEM_POOL_CEIL = False

    # [[regex, {option: value}], ...]: convolutions of any part of the network, of Detectron2 or of
    # another plug-in, that become deformable, e.g. [["roi_heads.mask_head", {"groups": 4}]]. All
    # convolutions larger than 1x1 whose full name in the model matches (re.search) are meant; the
    # first match decides; a regex without one is an error. Options, with the meaning of
    # MODEL.RESNETS.DEFORM_{NUM_GROUPS, MODULATED, BORDER, OFFSET_CLAMP, OFFSET_DILATION}: groups,
    # modulated, border, clamp, offset_dilation; by default one group and the paper's layer.
    # Only `d2_deformable.modeling.build_model` reads it: a trainer of another project must call
    # that in its own `build_model`.
    cfg.MODEL.DEFORM_MODULES = []

    # Levels above the last stage's in build_deform_resnet_fpn_backbone: "LastLevelMaxPool" (p6, for
    # Faster and Mask R-CNN), "LastLevelP6P7" (p6 and p7 by convolutions, for RetinaNet and FCOS) or
    # "LastLevelP6" (p6 by a convolution, as in the released FPN). Empty chooses as Detectron2 does:
    # "LastLevelP6P7" for RetinaNet and FCOS, otherwise "LastLevelMaxPool".
    cfg.MODEL.FPN.TOP_BLOCK = ""
    # The map that the convolutions of TOP_BLOCK read: "res5" (RetinaNet, the released FPN) or "p5"
    # (FCOS).
    cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE = "res5"

    # With empty MODEL.WEIGHTS, FrozenBN or FREEZE_AT > 0 freezes layers at random values. Training
    # then stops with an error unless this is True.
    cfg.MODEL.BACKBONE.ALLOW_FROZEN_RANDOM = False
    # Activation checkpointing in training: keep only the inputs of the backbone's blocks, and
    # recompute the blocks in the backward pass. Gradients stay the same; it takes less memory and
    # one more forward pass (Chen et al. 2016, "Training deep nets with sublinear memory cost").
    cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINT = False

    # Which proposals train RFCNHeads, DeformROIHeads and DeformCascadeROIHeads: "random"
    # (BATCH_SIZE_PER_IMAGE at POSITIVE_FRACTION, as Detectron2) or "ohem" (the BATCH_SIZE_PER_IMAGE
    # with the highest loss of all proposals of the image: 128 in the released R-FCN, 512 in the
    # released FPN). Plain poolers work too.
    cfg.MODEL.ROI_HEADS.SAMPLING = "random"

    # R-CNN feature mimicking (Deformable ConvNets v2, sec. 3.3): two more losses in training, and
    # inference as before. MODEL.META_ARCHITECTURE MimicRCNN, with StandardROIHeads or
    # DeformROIHeads, switches it on; see modeling/meta_arch/mimic.py.
    mimic = cfg.MODEL.MIMIC = CN()
    # The most positive RoIs of an image whose crops are computed.
    mimic.NUM_ROIS = 32
    # Height and width that a crop is resized to, in pixels.
    mimic.CROP_SIZE = 224
    # Factor of both losses.
    mimic.LOSS_WEIGHT = 0.1

    # PROPOSAL_GENERATOR.NAME gains "LegacyRPN": proposals and labels of anchors by the rules of the
    # released code, see modeling/proposal_generator.py.

    # New values of POOLER_TYPE. For DeformROIHeads: "DeformROIPool", and "LegacyROIPool", the max
    # pooling of the released Faster R-CNN. For RFCNHeads: "PSROIPool" and "DeformPSROIPool".
    # "ModulatedDeformROIPool" and "ModulatedDeformPSROIPool" also learn a factor per bin, as in
    # Deformable ConvNets v2.
    # "ROIAveragePool" and "PSROIAveragePool" are the deformable ones without offsets, the baselines
    # for their gain. The keys below configure the deformable ones and these baselines.
    # Networks of mmdetection need its own sampling and offset layers, one set per level:
    # "DeformROIAlign" (its dpool) and "ModulatedDeformROIAlign" (mdpool), both for DeformROIHeads.
    # They read only DEFORM_GAMMA of the keys below, and Detectron2's POOLER_SAMPLING_RATIO.
    box_head = cfg.MODEL.ROI_BOX_HEAD
    # Offsets are fractions of the RoI's size, scaled by this factor (gamma of paper sec. 2.2).
    box_head.DEFORM_GAMMA = 0.1
    # "DeformROIPool" and "ModulatedDeformROIPool" predict offsets by a layer for each level of a
    # pyramid, as the released FPN does, instead of one for all levels.
    box_head.DEFORM_OFFSETS_PER_LEVEL = False
    # Samples per bin and axis. With 0, "ROIAveragePool" averages whole pixels: equation 5 of the
    # paper to the letter. (Its position-sensitive twin is "PSROIPool".)
    box_head.DEFORM_SAMPLES_PER_PART = 4
    # Round box corners to whole pixels before scaling, as the original operators do.
    box_head.ROUND_ROIS = True

    # Detectron2's SOLVER.AMP.ENABLED also works on the CPU: forward passes then use bfloat16.

    # [[regex, factor], ...]: the learning rate of a parameter whose full name matches (re.search)
    # is multiplied by the factor; several matches multiply; a regex without a match is an error.
    # Only `d2_deformable.engine.build_optimizer` reads it: a trainer of another project must call
    # that in its own `build_optimizer`, or the factors have no effect.
    cfg.SOLVER.LR_MULTIPLIERS = []

    # Keep only the last so many checkpoints of single iterations, model_0004999.pth; 0 keeps all.
    # model_final.pth and model_best.pth stay. With 2 or more, a training can resume from the one
    # before if the last one is damaged. Detectron2's LazyConfigs call it checkpointer.max_to_keep.
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 0

    # Also average the weights over the steps (exponential moving average), evaluate the average as
    # e.g. "bbox_EMA/AP", and save it as model_ema.pth. Keys and decay are D2Go's; Detectron2 has
    # none. A copy of the network takes memory.
    ema = cfg.MODEL_EMA = CN()
    # Average the weights.
    ema.ENABLED = False
    # Share of the average that a step keeps; 0.999 averages over about 1000 steps. The first steps
    # keep less, so that the initial weights are forgotten.
    ema.DECAY = 0.999

    # Statistics of offsets and warnings during training, see d2_deformable/engine/offset_health.py.
    health = cfg.OFFSET_HEALTH = CN()
    # Iterations between two measurements; 20 is Detectron2's writing period; 0 switches it off.
    health.PERIOD = 20
    # Offsets count as staying at zero if their 99th percentile is still below MIN_CONV or MIN_ROI
    # after this many iterations at the full learning rate, i.e. after SOLVER.WARMUP_ITERS. A
    # shorter run is not judged.
    health.ZERO_AFTER = 1000
    # In feature-map cells. A sample moved by 0.01 cells changes by at most 1 % of the difference of
    # two neighbours.
    health.MIN_CONV = 0.01
    # In fractions of the RoI: 0.001 of a RoI of 10 cells is 0.01 cells.
    health.MIN_ROI = 0.001
    # Offsets of a convolution run away when their 99th percentile exceeds this share of the map's
    # shorter side: the paper's widest filters (table 2) reach about a third of it.
    health.MAX_CONV = 0.5
    # Offsets of RoI pooling run away when their 99th percentile exceeds this many RoI sizes: no
    # part lies in its RoI any more.
    health.MAX_ROI = 1.0
    # Offsets also run away when they move more than this share of the samples out of the map.
    health.MAX_OUTSIDE = 0.25

    # Train without the objects that VOC marks `difficult`, as the released code does (its
    # lib/dataset/pascal_voc.py); Detectron2 keeps them. Evaluation is not affected.
    cfg.INPUT.DROP_DIFFICULT = False

    # Train on when an image cannot be read: take another one in its place and count it, as the
    # scalar "skipped_images" and in the log. False stops and names the file.
    cfg.INPUT.SKIP_BROKEN_IMAGES = False

    # Batches that each of DATALOADER.NUM_WORKERS has ready or at work; more of them help if some
    # images take much longer than others, and take memory. The default is torch's.
    cfg.DATALOADER.PREFETCH_FACTOR = 2

    # User data sets: {name: {FORMAT, ROOT, IMAGES, SPLIT, CLASSES, PART, and ANNOTATIONS or
    # MASKS, IGNORE}}, see d2_deformable/data/custom.py.
    cfg.DATASETS.CUSTOM = CN(new_allowed=True)

    # Average precision of VOC: "07" (11 points, as in the paper) or "area" (VOC 2010 and later).
    cfg.TEST.VOC_METRIC = "area"
    # Size at which mIoU is computed: "full" is that of the image. The released code resizes by
    # nearest neighbour: "resized_ground_truth" (VOC) resizes the ground truth to the network's
    # input, "resized_prediction" (Cityscapes) resizes predictions of that size to the image.
    cfg.TEST.SEM_SEG_RESOLUTION = "full"

    # Keep the checkpoint with the highest value of this result, e.g. "bbox/AP", "voc/AP50" or
    # "sem_seg/mIoU" (with several test sets "NAME/bbox/AP"), as model_best.pth. Evaluations are
    # made every TEST.EVAL_PERIOD iterations. Empty keeps none.
    cfg.TEST.BEST_METRIC = ""
    # Stop the training after this many evaluations without a higher value; 0 never stops it.
    cfg.TEST.EARLY_STOP_PATIENCE = 0

    # Soft-NMS instead of NMS among detections (Bodla et al. 2017), in ordinary and in multi-scale
    # tests, and in exported files. Names and defaults are Detectron's. Read by RFCNHeads,
    # DeformROIHeads, DeformCascadeROIHeads and ClassAwareRPN; other networks are refused.
    soft_nms = cfg.TEST.SOFT_NMS = CN()
    # Lower the scores of overlapping detections instead of removing them.
    soft_nms.ENABLED = False
    # "linear" lowers scores above an IoU of MODEL.ROI_HEADS.NMS_THRESH_TEST; "gaussian" lowers all
    # of overlapping detections (the released FPN: SIGMA 0.6).
    soft_nms.METHOD = "linear"
    # Width of the Gaussian, in units of a squared IoU.
    soft_nms.SIGMA = 0.5
    # Drop detections whose lowered score is not above this; SCORE_THRESH_TEST applies before.
    soft_nms.MIN_SCORE = 1e-4

    # Iterative bounding-box average at test time (paper table 5, "+B"; Gidaris and Komodakis 2015),
    # together with TEST.AUG (several scales, "+M") if that is enabled, else at one scale. For
    # detectors whose RoI heads offer predict_boxes, and for ClassAwareRPN; see modeling/tta.py.
    average = cfg.TEST.BOX_AVERAGE = CN()
    # Average the boxes of a detector's tests.
    average.ENABLED = False
    # Passes over an image: each pass after the first scores and regresses the boxes of the previous
    # one. 1 averages the boxes of one pass, the only value that ClassAwareRPN supports. Inferred
    # from the reference.
    average.ITERATIONS = 2
    # Lowest IoU at which a box takes part in the mean. Inferred from the reference.
    average.VOTE_IOU = 0.5

    cfg.merge_from_other_cfg(given)


def read_config(config_file, overrides=()) -> CN:
    """Merge Detectron2's and this package's defaults, the YAML and the overrides; not frozen.

    Args:
        overrides: KEY, VALUE, KEY, VALUE, ...

    Raises:
        ValueError: an unknown key, a value of the wrong type, or a file that is not YAML.
        FileNotFoundError: the file, or one that it builds on, does not exist.
    """
    cfg = get_cfg()
    add_deformable_config(cfg)
    merge_from_file(cfg, config_file)
    merge_overrides(cfg, overrides)
    return cfg


def changes(cfg: CN) -> dict:
    """The keys and values of `cfg` that differ from Detectron2's and this package's defaults.

    Written as a YAML, they are read as the same config.
    """
    defaults = get_cfg()
    add_deformable_config(defaults)
    return {"VERSION": cfg.VERSION} | difference(cfg, defaults)


def merge_overrides(cfg: CN, overrides) -> None:
    """Set KEY, VALUE, KEY, VALUE, ... in `cfg`, including new fields of DATASETS.CUSTOM.

    Raises:
        ValueError: an unknown key, or a value of the wrong type.
    """
    # yacs accepts new keys only from files, and requires the type of the existing value.
    for key in overrides[::2]:
        if key.startswith("DATASETS.CUSTOM.") and key.count(".") == 3:
            name, field = key.split(".")[2:]
            cfg.DATASETS.CUSTOM.setdefault(name, CN(new_allowed=True))[field] = None
    merge_from_list(cfg, overrides)
