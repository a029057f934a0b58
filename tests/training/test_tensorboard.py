from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onepeace_lightning.training.tensorboard import ChangingScalars


def test_only_what_changes_has_a_chart(tmp_path):
    logger = ChangingScalars(tmp_path, name="logs", version="")
    for step in range(4):
        values = {"loss": 3.0 - step, "bad": 0, "late": float(step == 3), "epoch": step, "val/chance/a_to_b/R@1": step}
        logger.log_metrics(values, step)
    logger.log_metrics({"val/score": 7.0, "chance/score": 1.0}, 3)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    written = {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert written == {
        "loss": [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.0)],
        "late": [(0, 0.0), (3, 1.0)],
        "val/score": [(3, 7.0)],
    }


def test_a_run_that_goes_on_writes_on(tmp_path):
    logger = ChangingScalars(tmp_path, name="logs", version="")
    for step in range(2):
        logger.log_metrics({"loss": float(step)}, step)
    logger.finalize("success")
    logger.log_metrics({"loss": 2.0}, 2)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [one.value for one in events.Scalars("loss")] == [0.0, 1.0, 2.0]
