"""SD 1.5's networks: UNet, VAE and text encoder."""
