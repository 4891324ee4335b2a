"""All networks of this folder."""

from __future__ import annotations

from models.convolutional_vae import DECODER, ENCODER
from models.deepmet import DEEPMET
from models.deeptau import DEEPTAU
from models.ecal_drn import ECAL_DRN
from models.emtrkmichelid import EMTRKMICHELID
from models.facile import FACILE
from models.graph_vae import GRAPH_VAE
from models.particlenet import PARTICLENET_AK4, PARTICLENET_AK8
from models.particletransformer import PARTICLETRANSFORMER
from models.point_voxel import POINT_VOXEL
from models.reconstruction_bdt import RECONSTRUCTION_BDT
from models.resnet50 import RESNET50

__all__ = ["NETWORKS"]

NETWORKS = {
    served.name: served
    for served in (
        EMTRKMICHELID, FACILE, RESNET50, PARTICLENET_AK4, PARTICLENET_AK8, PARTICLETRANSFORMER, DEEPTAU, DEEPMET,
        ENCODER, DECODER, GRAPH_VAE, ECAL_DRN, POINT_VOXEL, RECONSTRUCTION_BDT,
    )
}  # fmt: skip
