"""dreamlab: teach a text-to-image diffusion model a new subject, and measure what that costs it."""

__version__ = "0.1.0"
