"""The repository root is the package `nexus_transformers`: it is laid out as the Hub sees a model, files flat."""

from pathlib import Path

from setuptools import setup

PACKAGES = [
    "",
    ".conversion_scripts",
    ".conversion_scripts.families",
    ".conversion_scripts.checkpoint",
    ".conversion_scripts.hub",
    ".conversion_scripts.verification",
    ".inspection",
    ".tokenization",
]

setup(
    name="nexus-transformers",
    version="0.1.0",
    description="Nexus: higher-order attention as a Hugging Face model, with exact conversion of standard checkpoints",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"nexus_transformers": "."},
    packages=["nexus_transformers" + package for package in PACKAGES],
    package_data={
        "nexus_transformers": ["model_card.md"],
        "nexus_transformers.conversion_scripts.hub": ["evidence.md"],
        "nexus_transformers.inspection": ["page/*"],
    },
    # Lower ends: the oldest that are tested, see constraints-oldest.txt.
    install_requires=[
        "torch>=2.13",
        "transformers>=5.16.1,<6",
        "safetensors>=0.8",
        "tokenizers>=0.23.1",  # training a tokenizer; Transformers, which needs it too, sets the upper end
        "huggingface-hub>=1.26",
        "typer>=0.20",  # the `nexus` command
        "rich>=14",  # its progress bars and tables
        "jinja2>=3.1.6",  # huggingface-hub's model cards need it
        "filelock>=3.20",  # one converter per output
        "accelerate>=1.15",  # weights left on the disk while a large model is verified (older ones confuse tied ones)
        "psutil>=5.9",  # whether a model fits in memory
    ],
    extras_require={
        "gguf": ["gguf>=0.17.1"],  # GGUF sources
        "plot": ["matplotlib>=3.10"],
        "lint": ["ruff>=0.12"],
        "test": [
            "nexus-transformers[gguf,plot]",
            "pytest>=9",
            "pytest-xdist>=3.8",
            "parameterized>=0.9",
            "selenium>=4.51",  # clicks through the page of `nexus inspect` in a real browser
        ],
        # What users reach for, and we test.
        "tools": ["peft>=0.21", "trl>=1.16", "lm-eval[math]>=0.4.13", "datasets>=5"],
        # Its reasoning tasks. Not in `dev`: a package that it needs, pycosat, comes as source and wants a C compiler.
        "evidence": ["nexus-transformers[gguf,plot]", "peft>=0.21", "reasoning-gym>=0.1.25"],
        "dev": ["nexus-transformers[lint,test,tools]"],
    },
    entry_points={"console_scripts": ["nexus = nexus_transformers.conversion_scripts.cli:main"]},
)
