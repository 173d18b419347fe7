"""d2-deformable demo, with a training of two steps."""

from d2_deformable.cli.main import main


def test_demo_writes_a_report_of_both_networks(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    small = {
        "SOLVER.IMS_PER_BATCH": "2",
        "SOLVER.MAX_ITER": "2",
        "DATASETS.CUSTOM.warped_shapes_train.NUM_IMAGES": "4",
        "DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES": "2",
    }
    overrides = [word for pair in small.items() for word in pair]
    main(["demo", "--output", str(tmp_path / "demo"), *overrides])
    assert f"wrote {tmp_path / 'demo/report.html'}" in capsys.readouterr().out
    page = (tmp_path / "demo/report.html").read_text()
    assert "COCO of d2_deformable://warped_shapes_rfcn_R_18_dconv3_dpool.pth" in page
    assert (tmp_path / "demo/model_final.pth").is_file()
