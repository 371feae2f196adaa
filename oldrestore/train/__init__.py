"""Training of the triplet, stage by stage, as in Wan et al., CVPR 2020.

    vae --domain clean     the VAE of clean photos
    vae --domain old       the VAE of real and synthetic old photos, latents aligned by an adversary
    mapping                old latent and mask -> clean latent
    mask                   the scratch detector
    tone                   the tone head
    denoise                the denoise head: how much of all that a photo needs
    face                   the face network
    release                the stages' averaged weights as one file for `restore`

Each stage is one file that reads as its algorithm; `loop.py` runs them all.
"""
