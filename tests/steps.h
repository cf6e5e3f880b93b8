/* steps.h: training steps one by one, each with its result. */
#ifndef PROMOT_STEPS_H
#define PROMOT_STEPS_H

static int train_step(Trainer *t, const Model *model, const Prompts *prompts, const Stage *stage,
                      const TokenExample *examples, size_t count, size_t micro, int64_t step, uint64_t key,
                      bool dropout_shared, StepResult *result, Error *error)
{
    *result = (StepResult){0}; /* of a step that could not be made */
    if (train_step_queue(t, model, prompts, stage, examples, count, micro, step, key, dropout_shared, error)) return -1;
    return train_step_result(t, stage, result, error);
}

#endif
