"""The networks that have a name: timm's registry, the authors' networks and weights."""
