"""The experiments by name: trunks, the arms that branch from them, and their commands.

A *trunk* is a plain network, trained from the pretrained backbone until its curve is flat. An *arm*
continues from the trunk's checkpoint with new modules initialised to zero or, in a task without
trunks, starts from the backbone itself, as in the paper. It has the same data order and schedule as
the other arms of its *repetition*, so its gain over the arm `plain` is due to its modules.
docs/results/protocol.md states which comparisons were fixed before the runs.
"""

import shlex
from dataclasses import dataclass, replace

CONFIGS = "benchmarks/learning/configs"
OUTPUTS = "output/learning"
BACKBONE = f"{OUTPUTS}/R-50-thin.pth"
OFFSETS = "conv_offset|offset_fc|offset_maps"


@dataclass(frozen=True)
class Task:
    """A network on a data set, and how its arms are trained.

    config: stem of its YAML in CONFIGS.
    metrics: endpoints in order of importance, see endpoints.py.
    curve: the validation scalar that is recorded during training.
    valid, test: data sets; settings are chosen on `valid`. `test` is measured once, at the end of
        each arm, and decides nothing.
    trunk: (iterations, (learning rate steps)); None if arms start from the backbone.
    branch: the same, of each arm.
    rates: SOLVER.LR_MULTIPLIERS, to which an arm may add.
    arms: {name: KEY, VALUE, ... on top of the YAML}.
    settings: KEY, VALUE, ... of all its trainings.
    """

    name: str
    config: str
    metrics: tuple[str, ...]
    curve: str
    valid: str
    test: str
    trunk: tuple[int, tuple[int, ...]] | None
    branch: tuple[int, tuple[int, ...]]
    rates: tuple[tuple[str, float], ...]
    arms: dict[str, tuple]
    settings: tuple = ()


def _rates(task_rates, offsets=1.0) -> tuple[str, str]:
    entries = [*task_rates, (OFFSETS, offsets)] if offsets != 1.0 else task_rates
    return "SOLVER.LR_MULTIPLIERS", str([list(entry) for entry in entries])


DEEPLAB_RATES = (("sem_seg_head", 10.0),)
DILATION = "MODEL.RESNETS.RES5_DILATION"
DCONV = ("MODEL.RESNETS.DEFORM_NUM_LAYERS", "3")
CLOTHING_SCHEDULE = (1500, (1200, 1400))
CLOTHING = Task(
    name="clothing_deeplab",
    config="clothing_deeplab",
    metrics=("mIoU",),
    curve="sem_seg/mIoU",
    valid="clothing_val",
    test="clothing_test",
    trunk=CLOTHING_SCHEDULE,
    branch=(500, (350, 450)),
    rates=DEEPLAB_RATES,
    arms={
        "plain": (),
        "dilation4": (DILATION, "4"),
        "dilation6": (DILATION, "6"),
        "dconv3": DCONV,
        "dconv3_rate01": (*DCONV, *_rates(DEEPLAB_RATES, 0.1)),
        "dconv3_rate0": (*DCONV, *_rates(DEEPLAB_RATES, 0.0)),
        "dconv6": ("MODEL.RESNETS.DEFORM_NUM_LAYERS", "6"),
    },
)
STRAIGHT = replace(
    CLOTHING,
    name="clothing_deeplab_straight",
    trunk=None,
    branch=CLOTHING_SCHEDULE,
    arms={arm: CLOTHING.arms[arm] for arm in ("plain", "dilation4", "dconv3")},
    settings=("SOLVER.AMP.ENABLED", "True", "TEST.EVAL_PERIOD", "500"),
)
SHAPES = replace(
    STRAIGHT,
    name="shapes_deeplab_wide",
    config="shapes_deeplab",
    valid="shapes_val",
    test="shapes_test",
)
RIGID = replace(
    SHAPES,
    name="shapes_deeplab_rigid",
    settings=(
        *SHAPES.settings,
        *(
            word
            for split in ("train", "val", "test")
            for word in (f"DATASETS.CUSTOM.shapes_{split}.VARIATION", "rigid")
        ),
    ),
)
TASKS = {task.name: task for task in (CLOTHING, STRAIGHT, SHAPES, RIGID)}


@dataclass(frozen=True)
class Run:
    """One training: a trunk or, if `arm` is given, a branch of it.

    seed: seed of the trunk; 0 in a task without trunks.
    branch: seed of the branch, shared by the arms of a repetition.
    """

    task: str
    seed: int
    arm: str = ""
    branch: int = 0

    @property
    def name(self) -> str:
        trunk = f"{self.task}_trunk{self.seed}" if self.seed else self.task
        return f"{trunk}_branch{self.branch}_{self.arm}" if self.arm else trunk

    @property
    def start(self) -> str:
        """Path of the weights from which it starts."""
        return Run(self.task, self.seed).checkpoint if self.arm and self.seed else BACKBONE

    @property
    def output(self) -> str:
        """OUTPUT_DIR, relative to the checkout."""
        return f"{OUTPUTS}/{self.name}"

    @property
    def checkpoint(self) -> str:
        """Path of the final weights."""
        return f"{self.output}/model_final.pth"

    @property
    def arguments(self) -> list[str]:
        """Arguments of train_net.py."""
        task = TASKS[self.task]
        iterations, steps = task.branch if self.arm else task.trunk
        settings = [
            *("SEED", str(self.branch if self.arm else self.seed)),
            *("SOLVER.MAX_ITER", str(iterations), "SOLVER.STEPS", str(steps)),
            *_rates(task.rates),
            *task.settings,
            *("OUTPUT_DIR", self.output),
        ]
        if self.arm:
            settings += ["MODEL.WEIGHTS", self.start, *task.arms[self.arm]]
        return ["--config-file", f"{CONFIGS}/{task.config}.yaml", *settings]

    @property
    def command(self) -> str:
        return f"OMP_NUM_THREADS=1 python train_net.py {shlex.join(self.arguments)}"


def parse(name: str) -> Run:
    """Find the run of that name.

    Raises:
        ValueError: there is no such run.
    """
    for repetition in PLAN:
        for run in repetition.runs:
            if run.name == name:
                return run
    raise ValueError(f"{name}: no such run; `python -m benchmarks.learning.queue --list` shows all")


@dataclass(frozen=True)
class Repetition:
    """Arms that are compared with each other: one trunk, one branch seed.

    seed: seed of the trunk; 0 in a task without trunks.
    """

    task: str
    seed: int
    branch: int
    arms: tuple[str, ...]

    @property
    def trunk(self) -> Run | None:
        return Run(self.task, self.seed) if self.seed else None

    @property
    def branches(self) -> list[Run]:
        return [Run(self.task, self.seed, arm, self.branch) for arm in self.arms]

    @property
    def runs(self) -> list[Run]:
        """All trainings, in their order."""
        return [self.trunk, *self.branches] if self.trunk else self.branches


# The order in which the queue trains. RIGID is trained beside each repetition of SHAPES, whose
# third arm comes last. Of CLOTHING, repetition 1 has the arms among which settings are chosen on
# `valid`; repetitions 2 to 5, each on a trunk of its own, follow when the choice is made, see
# docs/results/protocol.md.
PLAN = [
    *(Repetition(STRAIGHT.name, 0, seed, ("plain", "dconv3", "dilation4")) for seed in range(1, 6)),
    *(
        Repetition(task.name, 0, seed, ("plain", "dconv3"))
        for seed in range(1, 6)
        for task in (SHAPES, RIGID)
    ),
    *(Repetition(SHAPES.name, 0, seed, ("plain", "dconv3", "dilation4")) for seed in range(1, 6)),
    Repetition(
        "clothing_deeplab",
        seed=1,
        branch=1,
        arms=("plain", "dconv3", "dilation4", "dconv3_rate01", "dilation6", "dconv3_rate0"),
    ),
]
