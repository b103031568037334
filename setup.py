"""The repository root is the package `nexus_transformers`: it is laid out as the Hub sees a model, files flat."""

from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import find_packages, setup

FOLDERS = find_packages(include=["conversion_scripts*", "inspection*", "tokenization*"])

# Lower ends: the oldest that are tested, see constraints-oldest.txt. Upper ends: the first that is untested, of those
# whose releases have broken their users. Transformers does so in minor releases; `make test-next` tries the next one.
REQUIRES = [
    "torch>=2.13,<3",
    "transformers>=5.16.1,<5.25",
    "safetensors>=0.8,<1",
    "tokenizers>=0.23.1",  # training a tokenizer; Transformers, which needs it too, sets the upper end
    "huggingface-hub>=1.26,<3",
    "typer>=0.20,<1",  # the `nexus` command
    "rich>=14",  # its progress bars and tables
    "jinja2>=3.1.6",  # huggingface-hub's model cards need it
    "filelock>=3.20",  # one converter per output
    "accelerate>=1.15,<2",  # weights left on the disk while a large model is verified (older ones confuse tied ones)
    "psutil>=5.9.8",  # whether a model fits in memory
]
EXTRAS = {
    "gguf": ["gguf>=0.17.1,<1"],  # GGUF sources
    "sentencepiece": ["sentencepiece>=0.2.1,<1", "protobuf>=6.33"],  # tokenizers that have a tokenizer.model only
    "plot": ["matplotlib>=3.10"],
    "lint": ["ruff>=0.17.6"],
    "test": [
        "nexus-transformers[gguf,plot,sentencepiece]",
        "pytest>=9",
        "pytest-xdist>=3.8",
        "parameterized>=0.9",
        "selenium>=4.51",  # clicks through the page of `nexus inspect` in a real browser
        "setuptools>=77.0.3",  # builds the wheel
    ],
    # What users reach for, and we test.
    "tools": [
        "peft>=0.21,<1",
        "trl>=1.16,<2",
        "lm-eval[math]>=0.4.13,<0.5",
        "datasets>=5,<6",
        "onnxscript>=0.7",  # writes ONNX
        "onnxruntime>=1.32",
        "nbclient>=0.11",  # runs the notebook, with the next
        "ipykernel>=7.4",
        "tensorboardX>=2.6",  # Trainer's `report_to="tensorboard"`
        "fastapi>=0.165",  # `transformers serve`, with the next two
        "uvicorn>=0.54",
        "openai>=3.57",
    ],
    # Its reasoning tasks. Not in `dev`: a package that it needs, pycosat, comes as source and wants a C compiler.
    "evidence": ["nexus-transformers[gguf,plot]", "peft>=0.21,<1", "reasoning-gym>=0.1.25,<1"],
    "dev": ["nexus-transformers[lint,test,tools]"],
}

with TemporaryDirectory() as scratch:  # so that `pip install .` leaves nothing in the checkout
    setup(
        name="nexus-transformers",
        version="0.2.0",
        description="Nexus: higher-order attention in Hugging Face Transformers, with exact conversion of checkpoints",
        long_description=Path("README.md").read_text(encoding="utf-8"),
        long_description_content_type="text/markdown",
        license="Apache-2.0",
        classifiers=["Programming Language :: Python :: 3.11"],  # what it is tested with
        python_requires=">=3.11",  # as Transformers 5.23
        package_dir={"nexus_transformers": "."},
        packages=["nexus_transformers", *(f"nexus_transformers.{folder}" for folder in FOLDERS)],
        package_data={
            "nexus_transformers": ["model_card.md"],
            "nexus_transformers.conversion_scripts.hub": ["evidence.md"],
            "nexus_transformers.inspection": ["page/*"],
        },
        install_requires=REQUIRES,
        extras_require=EXTRAS,
        entry_points={"console_scripts": ["nexus = nexus_transformers.conversion_scripts.cli:main"]},
        script_name="setup.py",  # pip calls it something else, and only a file of this name is kept out of the wheel
        options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}},
    )
