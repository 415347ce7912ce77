"""Losses: pure functions of scores, the one place that decides how scores are computed, and modules to call them by."""

from contrast.losses.modules import CLIPLoss, DCLLoss, InfoNCELoss, NTXentLoss, SigLIPLoss, SupConLoss

__all__ = ["CLIPLoss", "DCLLoss", "InfoNCELoss", "NTXentLoss", "SigLIPLoss", "SupConLoss"]
