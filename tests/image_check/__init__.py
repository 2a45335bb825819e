"""Three Dockerfiles, carried out for real without Docker (docs/image.md#image-check)."""
