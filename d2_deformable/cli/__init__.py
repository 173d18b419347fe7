"""The commands of d2-deformable; importing this needs no Detectron2."""
