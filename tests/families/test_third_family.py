"""A family that the package does not know needs nothing but an answer to `Family`: it proves the door."""

import json

import pytest
import torch
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.families import registry

from .torchvision_family import StitchedResNet, TorchvisionFamily
