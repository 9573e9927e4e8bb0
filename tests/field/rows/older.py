"""Models as TensorFlow 1 wrote them: a session, a builder, and what is run at the load."""

from tests.field.expected import Answer, Class, ErrorRate, Refusal, Row

ROWS = (
    Row("session_variables", "variables that are no resources", {"x": "float [?, 2]"},
        {"y": "float [?, 1]"}, (Answer({"x": [[1.0, 2.0]]}, {"y": [[21.0]]}),),
        Refusal(2, "input 'x'")),
    Row("frozen_graph", "constants below a name scope", {"input": "float [?, 2]"},
        {"output": "float [?, 1]"}, (Answer({"input": [[1.0, 2.0]]}, {"output": [[21.5]]}),),
        Refusal(2, "input 'input'")),
    Row("session_with_init_op", "names from a table that the init op fills",
        {"images": "float [?, 8, 8, 3]"}, {"classes": "string [?, 3]", "scores": "float [?, 3]"},
        (Class("red.png", None, 0.9995, "red", meaning="scores of the best classes"),
         Class("green.png", None, 0.9995, "green", meaning="scores of the best classes")),
        ErrorRate("colours")),
)  # fmt: skip
