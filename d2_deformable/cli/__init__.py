"""The command line d2-deformable; importing it needs no Detectron2."""
