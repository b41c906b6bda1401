"""The multi-image feature synchroniser: text and drawn images look at the maps of earlier images."""
