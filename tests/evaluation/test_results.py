"""The table shows what was measured, and beside it what the paper has for the same task on the same images."""

from dinov2_zoo.evaluation.paper import published
from dinov2_zoo.evaluation.results import results_table


def record(task, source, headline, images=None, protocol=None, **metrics):
    data = {"source": source, "images": images or {"train": 3, "test": 2}}
    return {"task": task, "headline": headline, "metrics": metrics, "data": data, "protocol": protocol or {"k": 20}}


def test_rows_are_tasks_and_columns_models_with_a_gap_where_one_was_not_measured():
    table = results_table(
        {
            "teacher": [record("knn", "/x", "top1", top1=0.876), record("depth:lin4", "/y", "rmse", rmse=0.5)],
            "student": [record("knn", "/x", "top1", top1=0.5)],
        }
    )
    assert table.columns == ["task", "metric", "teacher", "student"]
    assert table.text_rows() == [["k-NN, k = 20", "top-1, %", "87.6", "50.0"], ["depth:lin4", "RMSE, m", "0.500", "-"]]
    assert table.note.startswith("Images: /x (knn: train 3, test 2). /y (depth:lin4: train 3, test 2).")


def test_one_task_on_two_data_sets_has_two_rows():
    table = results_table({"a": [record("knn", "/x", "top1", top1=0.5), record("knn", "/y", "top1", top1=0.25)]})
    assert table.text_rows() == [
        ["k-NN, k = 20, /x", "top-1, %", "50.0"],
        ["k-NN, k = 20, /y", "top-1, %", "25.0"],
    ]


def test_the_papers_models_stand_beside_their_data_sets_only():
    table = results_table(
        {
            "mine": [
                record("depth:lin4", "nyu:/data", "rmse", rmse=0.4),
                record("retrieval", "roxford:/data", "map_medium", map_medium=0.6, map_hard=0.3),
                record("linear", "imagenet:/x@train", "top1", top1=0.8, **{"robust/imagenet-a": 0.5}),
            ]
        }
    )
    assert table.columns[3:] == ["vits14, paper", "vitb14, paper", "vitl14, paper", "vitg14, paper"]
    rows = {row[0]: row[2:] for row in table.text_rows()}
    assert rows["depth:lin4"] == ["0.400", "0.417", "0.362", "0.333", "0.298"]
    assert rows["retrieval"][0] == "60.0" and rows["retrieval/hard"] == ["30.0", "43.2", "49.5", "54.0", "52.3"]
    assert rows["linear"][1] == "81.1" and rows["linear/imagenet-a"][:2] == ["50.0", "33.5"]


def test_a_folder_of_ones_own_has_no_figures_in_the_paper():
    assert published("knn", "/my/images") == {} and published("knn", "imagenet:/x@train")["vitg14"] == 83.5


def test_numbers_of_neighbours_and_images_are_told():
    own = record("knn", "lab", "top1", {"train": 23}, {"k": 20, "split": "leave-one-out"}, top1=0.5)
    apart = record("linear", "lab", "top1", {"train": 18, "test": 5}, {"split": "20% of each class kept out"}, top1=1)
    table = results_table({"a": [own, apart], "b": [own, apart]})
    assert [row[0] for row in table.text_rows()] == ["k-NN, k = 20", "linear"]
    assert table.note.startswith(
        "Images: lab (knn: n = 23 images, leave-one-out; linear: train 18, test 5, 20% of each class kept out)."
    )


def test_the_students_column_is_marked_unless_it_is_alone():
    one = [record("knn", "/x", "top1", top1=0.5)]
    assert results_table({"teacher": one, "mine": one}, ["mine"]).marked == ["mine"]
    assert results_table({"mine": one}, ["mine"]).marked == []
